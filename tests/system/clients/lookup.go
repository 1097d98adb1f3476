// Looks a name up with Go's own resolver.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
)

func main() {
	kind, name := os.Args[1], os.Args[2]
	resolver := net.Resolver{PreferGo: true}
	var err error
	if kind == "SRV" {
		var found []*net.SRV
		_, found, err = resolver.LookupSRV(context.Background(), "", "", name)
		for _, r := range found {
			fmt.Println(r.Priority, r.Weight, r.Port, strings.TrimSuffix(r.Target, "."))
		}
	} else {
		network := map[string]string{"A": "ip4", "AAAA": "ip6", "BOTH": "ip"}[kind]
		var found []net.IP
		found, err = resolver.LookupIP(context.Background(), network, name)
		for _, ip := range found {
			fmt.Println(ip)
		}
	}
	var failure *net.DNSError
	if errors.As(err, &failure) && failure.IsNotFound {
		fmt.Println("NONE")
	} else if err != nil {
		fmt.Println(err)
	}
}
