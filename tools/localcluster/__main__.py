from localcluster.cli import app

app()
