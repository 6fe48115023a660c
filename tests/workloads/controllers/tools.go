//go:build tools

// Package tools names the commands this module exists to build, so that `go mod tidy` keeps their requirements.
package tools

import (
	_ "github.com/kubeflow/trainer/v2/cmd/trainer-controller-manager"
	_ "sigs.k8s.io/jobset"
)
