// Command openapi writes the OpenAPI document of the management API to standard output,
// the same that a server has at /openapi.json.
package main

import (
	"fmt"
	"os"

	"github.com/mintmark-dev/mintmark/internal/management"
)

func main() {
	api, err := management.New(management.Config{})
	if err == nil {
		_, err = os.Stdout.Write(api.Document())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "openapi:", err)
		os.Exit(1)
	}
}
