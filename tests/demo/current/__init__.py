"""`make demo CLUSTER=current`: the same story on the cluster that the current kube context names.

`facts` asks the cluster, `preflight` decides whether and how the demo can run there, `images` provides what pods run,
`workbench` the pod with the object store, `footprint` remembers what was created and removes it, `command` is the rest.
"""
