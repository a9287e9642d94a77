package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/pve"
	"thinkheads.ai/phx/cmd/internal/scripts"
)

// fetcher fetches what feature scripts will need, before them and beside all other
// work, each asset once. The scripts find it in the cache, or wait for it. Where it
// cannot be fetched, the script tries again, and fails with its own message.
type fetcher struct {
	ctx     context.Context
	host    pve.Host
	scripts scripts.Dirs
	work    sync.WaitGroup

	mu    sync.Mutex
	begun map[scripts.Asset]bool
}

// newFetcher returns a fetcher, and what ends its work.
func newFetcher(ctx context.Context, o options) (f *fetcher, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	f = &fetcher{ctx: ctx, host: o.host, scripts: o.scripts, begun: map[scripts.Asset]bool{}}
	return f, func() {
		cancel(errors.New("no script needs it any more"))
		f.work.Wait()
	}
}

// fetch begins to fetch what a script needs.
func (f *fetcher) fetch(s *scripts.Script) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.scripts.Assets(s) {
		if f.begun[a] || f.ctx.Err() != nil {
			continue
		}
		f.begun[a] = true
		f.work.Go(func() {
			log := &cmdline.LineWriter{Line: func(line string) {
				cmdline.Logf("fetching %s: %s", a.Name, cmdline.Quoted(strings.TrimPrefix(line, "phoenix_assets: ")))
			}}
			defer log.Close()
			_ = f.host.RunFeature(f.ctx, log, nil, "bash", a.Library, "fetch", a.Name)
		})
	}
}

// fetchFor begins to fetch what a container needs that is still to be made; for one
// that is there, findDueScripts does when it knows which scripts are due. source is
// what it is cloned from, nil where that is not known: a clone has what was done there.
func (f *fetcher) fetchFor(c, source *config.Container, recreate bool) {
	if len(c.Features) == 0 || !recreate && f.host.HasConf(c.CTID) {
		return
	}
	for _, feature := range c.Features {
		if source != nil && slices.Contains(source.Features, feature) {
			continue
		}
		if s, err := f.scripts.Feature(feature); err == nil {
			f.fetch(s)
		}
	}
}
