// Command pause holds a pod's namespaces open and does nothing else.
// It is Go, not C, so that building the cluster needs one compiler only.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	<-stop
}
