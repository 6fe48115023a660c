//go:build tools

// Package tools names the command this module exists to build, so that `go mod tidy` keeps its requirements.
package tools

import _ "helm.sh/helm/v4/cmd/helm"
