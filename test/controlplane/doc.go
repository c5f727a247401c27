// Package controlplane runs a real etcd, kube-apiserver and, where asked,
// kube-controller-manager on the loopback interface: the Kubernetes that
// `make run` and the integration tests use. It needs no container runtime.
//
// The binaries are those in KUBEBUILDER_ASSETS, else those in the user's cache
// folder, else what setup-envtest can download, else they are built once from
// Go modules (hack/controlplane).
//
// RBAC authorization is on and service account tokens are real ones: TokenRequest
// and TokenReview work as in any cluster. There are no nodes and no pod network.
package controlplane
