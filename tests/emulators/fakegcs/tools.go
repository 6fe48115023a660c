//go:build tools

// Package fakegcs pins the version of fake-gcs-server that the tests run against.
package fakegcs

import _ "github.com/fsouza/fake-gcs-server"
