//go:build tools

// Package tools names the programs this module exists to build, so that `go mod tidy` keeps their requirements.
package tools

import (
	_ "github.com/google/go-containerregistry/cmd/crane"
	_ "oras.land/oras/cmd/oras"
)
