package config

import (
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
)

// Service is a traefik_service as the proxy serves it.
type Service struct {
	Name string `json:"name"`
	Host string `json:"host"` // NAME.DOMAIN
	URL  string `json:"url"`  // of the container itself: SCHEME://ADDRESS:PORT
	CTID int    `json:"ctid"`
}

// Services returns the services of all containers, by CTID.
func (f *File) Services(domain string) []Service {
	services := []Service{}
	for _, ctid := range slices.Sorted(maps.Keys(f.Containers)) {
		c := f.Containers[ctid]
		if c.TraefikService == nil {
			continue
		}
		address := url.URL{
			Scheme: c.TraefikService.Scheme,
			Host:   net.JoinHostPort(c.Network.IP.Addr().String(), strconv.Itoa(c.TraefikService.Port)),
		}
		services = append(services, Service{c.TraefikService.Name, c.TraefikService.Name + "." + domain, address.String(), ctid})
	}
	return services
}
