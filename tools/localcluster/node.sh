# The first process of a node, in namespaces of its own and in the node's folder.
# $1 images archive, $2 kubelet, $3 host name, $4 log of containerd
#
# The shell reaps what is orphaned on the node. The node lives as long as its kubelet.
set -eu

while read -r source target; do
  mount --bind "$source" "$target"
done <mounts

containerd --config containerd.toml >>"$4" 2>&1 &
until ctr version >/dev/null 2>&1; do
  kill -0 $! # ends the node if containerd has ended
  sleep 0.1
done
ctr --namespace k8s.io images import --snapshotter native "$1"

"$2" --config=kubelet.json --kubeconfig=kubeconfig --hostname-override="$3" --v=1
