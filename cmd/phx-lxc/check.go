package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/pve"
)

// The action check: looks at the host, and at what the containers of a plan ask of
// it. Nothing is changed.

// looks are all of them, in the order in which they are reported. What concerns
// storages is in check_storage.go, and so on.
var looks = []look{
	{"root", (*survey).root},
	{"pct", (*survey).pct},
	{"pve-container", (*survey).version},
	{"cluster file system", (*survey).clusterFiles},
	{"containers", (*survey).containers},
	each("nodename", func(j *job) bool { return j.c.NodeName != "" }, (*job).checkNode),
	{"storages", (*survey).storages},
	{"templates", (*survey).archives},
	{"clone sources", (*survey).sources},
	{"bridges", (*survey).bridges},
	{"addresses", (*survey).addresses},
	{"MAC addresses", (*survey).macs},
	each("scripts", hasScripts, (*job).checkScripts),
	{"programs", (*survey).programs},
	each("id maps", func(j *job) bool { return unprivileged(withPrivileges(j.c, j.ct.Conf)) }, (*job).checkMappable),
	each("mount points", hasMountPoints, (*job).checkHostPaths),
	each("owners", hasMountPoints, (*job).checkOwners),
	each("devices", func(j *job) bool { return len(j.c.Devices) > 0 },
		func(j *job, _ context.Context) error { return j.checkDevices() }),
	{"GPUs", (*survey).gpus},
	each("hook scripts", func(j *job) bool { return j.c.HookScript != "" },
		func(j *job, _ context.Context) error { return j.checkHookScript() }),
	each("SSH keys", func(j *job) bool { return j.isMissing() && j.c.SSHKeysFile != "" },
		func(j *job, _ context.Context) error { return j.checkKeysFile() }),
	each("AppArmor profiles", func(j *job) bool { return customProfile(j.c) != "" }, (*job).checkProfile),
	each("guests outside of the configuration", func(j *job) bool { return len(j.external) > 0 },
		(*job).checkExternal),
	{"firewall", (*survey).firewall},
	{"old scripts", (*survey).oldScripts},
}

// lookTimeout is how long all looks together may take: they are taken side by side.
const lookTimeout = 45 * time.Second

// check takes all looks at the containers of a plan, if its action is that, and
// reports what they find.
func (r *round) check() {
	if len(r.checked) == 0 {
		return
	}
	ctx, cancel := context.WithTimeoutCause(r.ctx, lookTimeout, fmt.Errorf("not known after %s", lookTimeout))
	defer cancel()
	surveyed := make(chan *survey, 1)
	go func() { surveyed <- r.survey(ctx) }()
	var s *survey
	select {
	case s = <-surveyed:
	case <-ctx.Done():
		r.point(bad("see what does not answer: pct list; and the files of Proxmox VE: systemctl status pve-cluster",
			"%v", context.Cause(ctx)).named("containers"))
		return
	}
	found := make([]chan []point, len(looks))
	for i, l := range looks {
		found[i] = make(chan []point, 1)
		go func() { found[i] <- l.run(s, ctx) }()
	}
	// A look may wait for a file system that does not answer, and not know of ctx.
	late := make(chan struct{})
	defer context.AfterFunc(ctx, func() { time.AfterFunc(time.Second, func() { close(late) }) })()
	for i, l := range looks {
		var points []point
		select {
		case points = <-found[i]:
		case <-late:
			select { // chooses freely among what is ready
			case points = <-found[i]:
			default:
				points = []point{leftOut("%v", context.Cause(ctx))}
			}
		}
		for _, p := range points {
			if p.name == "" {
				p.name = l.name
			}
			r.point(p)
		}
	}
}

// survey looks at the containers themselves.
func (r *round) survey(ctx context.Context) *survey {
	s := &survey{round: r, jobs: r.checked}
	host := r.options.host
	host.Preview = &pve.Preview{}
	s.host = &host
	s.guests = sync.OnceValues(host.Guests)
	s.storage = sync.OnceValues(func() (map[string]pve.StorageStatus, error) { return host.StorageStatus(ctx) })
	s.known, s.listed = r.states()
	for _, j := range s.jobs {
		j.changes = []string{}
		j.host = j.ownHost()
		j.ct = j.host.Container(j.c.CTID, j.records, j.options.lockWait, j.logf)
		s.wrong = append(s.wrong, j.ct.Look(s.known))
	}
	return s
}

// point reports a point.
func (r *round) point(p point) {
	body := event.CheckPoint{
		Program: cmdline.Name(), Point: p.name, Result: p.result, Text: p.text, Remedy: p.remedy,
	}
	label := ""
	if p.c != nil {
		body.CTID, label = p.c.CTID, fmt.Sprintf("%d %s", p.c.CTID, p.c.Name)
	}
	cmdline.Logf("%s", body.Message(label))
	r.run.note(false, p.result == event.CheckFailed)
	r.emit(body)
}
