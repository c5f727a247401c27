// Package install_test installs Mintmark as its users do, from the Helm chart and
// from kustomize, into a real API server, and holds the installation to what its
// pages promise: the two render the same, the two service accounts may do what
// the golden files in testdata list and nothing else, only the controller writes
// status, the pods pass the restricted profile, and the operator works with
// exactly these permissions.
//
// Helm and kustomize are built from hack/tools, at the versions pinned there.
package install_test
