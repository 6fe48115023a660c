//go:build tools

// Package tools names the programs this module exists to build, so that `go mod tidy` keeps their requirements.
package tools

import (
	_ "sigs.k8s.io/krew/cmd/krew"
	_ "sigs.k8s.io/krew/cmd/validate-krew-manifest"
)
