// Reads dashboards strictly by Grafana's schema, as its Foundation SDK has it: fields, types, enumerations, and the
// options and queries of each panel's plugin.
package main

import (
	"fmt"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

func main() {
	plugins.RegisterDefaultPlugins()
	status := 0
	for _, path := range os.Args[1:] {
		raw, err := os.ReadFile(path)
		if err != nil {
			fmt.Printf("%s: %v\n", path, err)
			os.Exit(2)
		}
		var read dashboard.Dashboard
		// Both give an empty list of errors, not nil, where there is none.
		for _, err := range []error{read.UnmarshalJSONStrict(raw), read.Validate()} {
			if err != nil && err.Error() != "" {
				fmt.Printf("%s: %v\n", path, err)
				status = 1
			}
		}
	}
	os.Exit(status)
}
