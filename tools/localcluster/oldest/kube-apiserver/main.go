// Command kube-apiserver is that of the oldest Kubernetes that the chart supports. The module is its own: two versions of
// Kubernetes do not fit into one.
package main

import (
	"os"
	_ "time/tzdata" // for CronJobs with a time zone

	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	os.Exit(cli.Run(app.NewAPIServerCommand()))
}
