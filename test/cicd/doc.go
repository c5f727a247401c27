// Package cicd holds the tests of what docs/ci-cd.md gives to pipelines: that the workflows
// are such that GitHub would run them, and that the action hands everything over safely.
// What the action does is tested against a server, in package server.
package cicd
