// Command image builds Mintmark's image with ko, without a container runtime, and
// pushes it.
//
// Mintmark is one image with three programs, at the paths the Dockerfile gives
// them: /mintmark-controller, /mintmark-server and /mintmark, which is also the
// entry point. ko makes an image of one program, /ko-app/NAME, on top of a base
// image. So the three are stacked: the command line tool on the server on the
// controller on the base, to which links are added from the paths that manifests
// use. What lies in between is pushed to a registry inside this process only, and
// no trace of that is in what is published.
//
// Building the same commit for the same base gives the same digest.
package main
