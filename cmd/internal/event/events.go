// Package event is the contract between the programs of phx: which events there
// are, what each says, and how they travel.
//
// The programs pass events to each other through pipes, as JSON objects, one a
// line, UTF-8, at most [MaxLine] bytes, always ended by a newline. Every line
// has the fields "event", its name, and "time", in RFC 3339 with milliseconds,
// in UTC. The further fields are those of the struct that belongs to the name:
// [NameContainerReady] to [ContainerReady], and so on. A field that is not named
// here is ignored, so that fields may be added.
//
// A filter forwards every line unchanged and at once, adds lines of its own,
// and holds back only plan.done until its own work is finished. A [Stream] does
// that.
//
// The stream may come from a file that somebody has edited: the container ids
// of an event are checked before a program sees it. What else an event says is
// for its reader to check. This package knows nothing of what the programs do,
// nor of exit statuses.
package event

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/tidwall/gjson"
	"thinkheads.ai/phx/cmd/internal/config"
)

// Names of events.
const (
	NamePlanDue          = "plan.due"
	NamePlanStarted      = "plan.started"
	NameContainerPlanned = "ct.planned"
	NamePlanDone         = "plan.done"

	NameWarning    = "warning"
	NameCheckPoint = "check.point"

	NameContainerStage   = "ct.stage"
	NameContainerRunning = "ct.running"
	NameContainerReady   = "ct.ready"
	NameContainerStarted = "ct.started"
	NameContainerStopped = "ct.stopped"
	NameContainerRemoved = "ct.removed"
	NameContainerStatus  = "ct.status"
	NameContainerPreview = "ct.preview"
	NameContainerFailed  = "ct.failed"
	NameContainerSkipped = "ct.skipped"

	NameCAExported    = "ca.exported"
	NameCAFailed      = "ca.failed"
	NameCAStatus      = "ca.status"
	NameCARotation    = "ca.rotation"
	NameCAFingerprint = "ca.fingerprint"

	NameNginxReady    = "nginx.ready"
	NameNginxFailed   = "nginx.failed"
	NameNginxStatus   = "nginx.status"
	NameTraefikReady  = "traefik.ready"
	NameTraefikFailed = "traefik.failed"
	NameTraefikStatus = "traefik.status"
)

// A Body is what an event says beside its name and its time: one of the structs
// of this package.
type Body interface {
	about() (name string, ctid int) // the event's name, and the container that it is about, 0 for none
}

// PlanDue is written by phx-plan --watch, outside of any stream of a plan: it is
// time for a run.
type PlanDue struct {
	Reason string   `json:"reason"`          // one of [DueStart] to [DueEvery]
	Paths  []string `json:"paths,omitempty"` // what has changed since the last run began, at most [MaxDuePaths]
}

// Reasons of a [PlanDue].
const (
	DueStart  = "start"  // the watch has begun
	DueChange = "change" // a file that a plan depends on has other content
	DueEvery  = "every"  // the time is up
)

// MaxDuePaths is how many paths a [PlanDue] names: more have changed at once only
// where a directory was replaced.
const MaxDuePaths = 100

// PlanStarted is written by phx-plan before the first container. Without it
// nothing of a plan may be done.
type PlanStarted struct {
	Round  string `json:"round"`             // random: the name of this run
	Action string `json:"action"`            // create, start, stop, restart, delete, recreate, status or check
	DryRun bool   `json:"dry_run,omitempty"` // nothing may be changed
	Count  int    `json:"count"`             // of containers
	Order  []int  `json:"order"`             // their ids, as they are planned, without those left out for mistakes

	config.Plan
}

// ContainerPlanned is written by phx-plan for each container, in order.
type ContainerPlanned struct {
	CTID     int             `json:"ctid"`
	Name     string          `json:"name"`
	Action   string          `json:"action"`           // the plan's; see docs/events.md for what others need
	Needs    []int           `json:"needs"`            // containers of the plan that have to be ready before
	External []int           `json:"external"`         // guests that it depends on and that are not in the file
	Config   json.RawMessage `json:"config,omitempty"` // the container's object, as in the file
}

// Provisions reports whether the container is to be as the configuration has it
// then.
func (e ContainerPlanned) Provisions() bool { return e.Action == "create" || e.Action == "recreate" }

// ApplicationScript returns the application script of the configuration, ""
// when there is none.
func (e ContainerPlanned) ApplicationScript() string {
	return gjson.GetBytes(e.Config, "application_script").Str
}

// PlanDone is written by phx-plan after the last container. Each filter
// forwards it when its own work on the plan is finished.
type PlanDone struct {
	Round string `json:"round"`
	Count int    `json:"count"`
}

// Warning is written by any program beside its message to people: something
// that they should know of and that is no failure.
type Warning struct {
	CTID    int    `json:"ctid,omitempty"` // the container that it is about; 0 for none
	Program string `json:"program"`
	Text    string `json:"text"`
}

// CheckPoint is written for the action check: what one look at the host, or at
// a container, has found.
type CheckPoint struct {
	CTID    int    `json:"ctid,omitempty"` // the container that it is about; 0 for none
	Program string `json:"program"`
	Point   string `json:"point"`            // what was looked at, as in "storage local-zfs"
	Result  string `json:"result"`           // one of [CheckOK] to [CheckLeftOut]
	Text    string `json:"text"`             // what was found
	Remedy  string `json:"remedy,omitempty"` // what to do about it, often a command
}

// Message is the point for people. label names its container; it is "" for a point
// that is about none.
func (e CheckPoint) Message(label string) string {
	text := fmt.Sprintf("%s: %s: %s", e.Point, e.Result, e.Text)
	if label != "" {
		text = label + ": " + text
	}
	if e.Remedy != "" {
		text += "\n" + e.Remedy
	}
	return text
}

// Results of a [CheckPoint].
const (
	CheckOK      = "ok"
	CheckWarning = "warning"  // a run would go on, but something would not be as wanted
	CheckFailed  = "failed"   // a run would fail
	CheckLeftOut = "left out" // it could not be looked at; the text says why
)

// ContainerStage is written when work on a container begins that takes time,
// such as a clone or a script. A container that is as it should be has none but
// those of its health checks.
type ContainerStage struct {
	CTID    int    `json:"ctid"`
	Program string `json:"program"`
	Stage   string `json:"stage"` // as in [ContainerFailed] and [ServiceFailed]
}

// ContainerRunning is written by phx-lxc before the end of the work on a container:
// it runs, nothing is to be done on it, and neither on what it needs. What is still
// under way are health checks, its own or those of what it needs. Its
// [ContainerReady], [ContainerFailed] or [ContainerSkipped] follows.
type ContainerRunning struct {
	CTID int    `json:"ctid"`
	Name string `json:"name"`
}

// ContainerReady is written by phx-lxc for a container that is as the
// configuration has it.
type ContainerReady struct {
	CTID              int      `json:"ctid"`
	Name              string   `json:"name"`
	IP                string   `json:"ip"`            // without its prefix length; "" when it has no fixed one
	IPs               []string `json:"ips,omitempty"` // all fixed addresses, IP first, where it has several
	Changed           bool     `json:"changed"`
	Changes           []string `json:"changes"`            // what this run has changed, for people
	RestartRequired   []string `json:"restart_required"`   // options whose values wait for a restart
	ApplicationScript string   `json:"application_script"` // "" for none
	NotInForce        bool     `json:"firewall_not_in_force,omitempty"`
	TemplateDiffers   []string `json:"template_differs,omitempty"` // what the file wants otherwise of a template
	ElapsedMS         int64    `json:"elapsed_ms"`

	Stages []StageTime `json:"stages,omitempty"` // how long each took, in the order in which they began
}

// ContainerChanged is the form of [ContainerStarted], [ContainerStopped] and
// [ContainerRemoved].
type ContainerChanged struct {
	CTID    int    `json:"ctid"`
	Name    string `json:"name"`
	Changed bool   `json:"changed"` // false when it was so before
}

type (
	// ContainerStarted is written by phx-lxc for a container that runs after the
	// action start or restart.
	ContainerStarted ContainerChanged
	// ContainerStopped is written by phx-lxc for a container that is stopped
	// after the action stop.
	ContainerStopped ContainerChanged
	// ContainerRemoved is written by phx-lxc for a container that does not exist
	// after the action delete, or that recreate is about to create.
	ContainerRemoved ContainerChanged
)

// ContainerStatus is written by phx-lxc for the action status.
type ContainerStatus struct {
	CTID            int               `json:"ctid"`
	Name            string            `json:"name"`
	State           string            `json:"state"` // running, stopped or missing
	Template        bool              `json:"template,omitempty"`
	Lock            string            `json:"lock,omitempty"` // what Proxmox VE has locked it for, as in backup
	HA              string            `json:"ha,omitempty"`   // the state that HA is to keep it in; "" without HA
	IP              string            `json:"ip"`
	IPs             []string          `json:"ips,omitempty"`
	Snapshots       []string          `json:"snapshots,omitempty"` // their names, the oldest first
	Applied         map[string]string `json:"applied"`             // hashes of what phx has applied, by name
	Drift           []string          `json:"drift"`               // what a run would change, for people
	RestartRequired []string          `json:"restart_required"`
	NotInForce      bool              `json:"firewall_not_in_force,omitempty"`
	TemplateDiffers []string          `json:"template_differs,omitempty"`
}

// ContainerPreview is written by phx-lxc in a dry run, in place of the event of
// success.
type ContainerPreview struct {
	CTID     int          `json:"ctid"`
	Name     string       `json:"name"`
	Changed  bool         `json:"changed"`  // there is something to do
	Commands [][]string   `json:"commands"` // that would be run, each as its arguments
	Files    []FileChange `json:"files"`
}

// FileChange is how a file would change.
type FileChange struct {
	Path string `json:"path"`
	Diff string `json:"diff"` // unified
}

// ContainerFailed is written by phx-lxc for a container of which an action has
// failed. What needs it is skipped.
type ContainerFailed struct {
	CTID  int    `json:"ctid"`
	Name  string `json:"name"`
	Stage string `json:"stage"` // what was being done; see [StageHealthCheck]
	Error string `json:"error"`

	Stages []StageTime `json:"stages,omitempty"` // as in [ContainerReady]
}

// StageHealthCheck is the stage of a [ContainerFailed] that is complete but for
// its health: what phx-ca-export, phx-nginx and phx-traefik do may heal it.
const StageHealthCheck = "health check"

// ContainerSkipped is written by phx-lxc for a container on which nothing was
// done, or which was made and not started, and by phx-plan for one that it has left
// out of the plan for a mistake.
type ContainerSkipped struct {
	CTID    int    `json:"ctid"`
	Name    string `json:"name"`
	Reason  string `json:"reason"`
	Because int    `json:"because,omitempty"` // the container that is not ready, or wrong; 0 when it is not for one
	Created bool   `json:"created,omitempty"` // it was made, and not started
}

// CAExported is written by phx-ca-export when the file at Path holds the root
// certificate.
type CAExported struct {
	CTID     int    `json:"ctid"` // of the CA
	Path     string `json:"path"`
	SHA256   string `json:"sha256"`         // fingerprint of the CA's root, as read out of its container
	Also     string `json:"also,omitempty"` // fingerprint of a second root, trusted while a rotation is under way
	CAURL    string `json:"ca_url"`         // https://HOST:PORT
	Changed  bool   `json:"changed"`        // the file, or the CA
	FromHost bool   `json:"from_host,omitempty"`

	// Subject and NotAfter are the root's common name and its end.
	Subject  string    `json:"subject,omitempty"`
	NotAfter time.Time `json:"not_after,omitzero"`

	Known *CAKnows `json:"known,omitempty"` // nil where nobody has looked into the container

	Stages []StageTime `json:"stages,omitempty"` // as in [ContainerReady]
}

// CAKnows is how the CA's container finds the proxy: hashes of what it has.
type CAKnows struct {
	Hosts      string `json:"hosts"`      // of phx's lines in /etc/hosts
	Neighbours string `json:"neighbours"` // of the unit that pins addresses to MACs
}

// CAFailed is written by phx-ca-export when the CA could not be asked or brought
// up to date. The root that the host has pinned is exported nevertheless.
type CAFailed struct {
	CTID  int    `json:"ctid"`
	Error string `json:"error"`

	Stages []StageTime `json:"stages,omitempty"` // as in [ContainerReady]
}

// CAStatus is written by phx-ca-export for the action status. Nothing is changed.
type CAStatus struct {
	CTID     int       `json:"ctid"`
	Path     string    `json:"path"`             // of the file with the root certificate, on the host
	SHA256   string    `json:"sha256,omitempty"` // fingerprint of the root in the file; "" without a file
	Also     string    `json:"also,omitempty"`   // as in [CAExported]
	Pinned   string    `json:"pinned,omitempty"` // fingerprint of the root that the host has pinned
	Serves   string    `json:"serves,omitempty"` // fingerprint of the root in the CA's container
	Subject  string    `json:"subject,omitempty"`
	NotAfter time.Time `json:"not_after,omitzero"`
	CAURL    string    `json:"ca_url"`
	Error    string    `json:"error,omitempty"` // what is wrong; "" when file, pin and container agree and it answers
}

// CARotation is written by phx-ca-export while a rotation of the root is under
// way, and after its last step.
type CARotation struct {
	CTID    int    `json:"ctid"`
	Step    string `json:"step"`   // the last step taken: trust, certificates or drop
	SHA256  string `json:"sha256"` // fingerprint of the new root
	Also    string `json:"also"`   // fingerprint of the old one
	Changed bool   `json:"changed"`
}

// CAFingerprint is written by phx-fingerprint when the file at Path holds the
// roots of a [CAExported] and nothing else.
type CAFingerprint struct {
	Path   string `json:"path"`
	SHA256 string `json:"sha256"`
	Also   string `json:"also,omitempty"`
	CAURL  string `json:"ca_url"`
}

// ServiceReady is the form of [NginxReady] and [TraefikReady].
type ServiceReady struct {
	CTID     int       `json:"ctid"`
	Names    []string  `json:"names"`              // that its certificates are for
	NotAfter time.Time `json:"not_after,omitzero"` // when the first of them expires
	Changed  bool      `json:"changed"`
	Changes  []string  `json:"changes"`

	Certificates []Certificate `json:"certificates,omitempty"` // by name
	ElapsedMS    int64         `json:"elapsed_ms"`             // how long the work on it took
	Stages       []StageTime   `json:"stages,omitempty"`       // as in [ContainerReady]
}

// Certificate is what a service shows for a name.
type Certificate struct {
	Name     string    `json:"name"`
	Issuer   string    `json:"issuer,omitempty"` // common name of the intermediate
	SHA256   string    `json:"sha256,omitempty"` // its fingerprint
	NotAfter time.Time `json:"not_after,omitzero"`
	Error    string    `json:"error,omitempty"` // why it is none that verifies; "" when it does
}

// ServiceStatus is the form of [NginxStatus] and [TraefikStatus].
type ServiceStatus struct {
	CTID         int           `json:"ctid"`
	Address      string        `json:"address"`         // ADDRESS:PORT that was asked
	Certificates []Certificate `json:"certificates"`    // one for each name that it is to serve
	Error        string        `json:"error,omitempty"` // why it could not be asked

	// OutOfReach reports that neither the host nor the container could tell what the
	// service shows, which says nothing of the service.
	OutOfReach bool `json:"out_of_reach,omitempty"`
}

// ServiceFailed is the form of [NginxFailed] and [TraefikFailed].
type ServiceFailed struct {
	CTID  int    `json:"ctid"`
	Stage string `json:"stage"`
	Error string `json:"error"`

	Stages []StageTime `json:"stages,omitempty"` // as in [ContainerReady]
}

type (
	// NginxReady is written by phx-nginx when the gateway serves.
	NginxReady ServiceReady
	// NginxFailed is written by phx-nginx when the gateway could not be set up.
	NginxFailed ServiceFailed
	// NginxStatus is written by phx-nginx for the action status.
	NginxStatus ServiceStatus
	// TraefikReady is written by phx-traefik when the proxy serves every name
	// with a certificate that verifies.
	TraefikReady ServiceReady
	// TraefikFailed is written by phx-traefik when the proxy could not be set up.
	TraefikFailed ServiceFailed
	// TraefikStatus is written by phx-traefik for the action status.
	TraefikStatus ServiceStatus
)

func (PlanDue) about() (string, int)            { return NamePlanDue, 0 }
func (PlanStarted) about() (string, int)        { return NamePlanStarted, 0 }
func (e ContainerPlanned) about() (string, int) { return NameContainerPlanned, e.CTID }
func (PlanDone) about() (string, int)           { return NamePlanDone, 0 }
func (e Warning) about() (string, int)          { return NameWarning, e.CTID }
func (e CheckPoint) about() (string, int)       { return NameCheckPoint, e.CTID }
func (e ContainerStage) about() (string, int)   { return NameContainerStage, e.CTID }
func (e ContainerRunning) about() (string, int) { return NameContainerRunning, e.CTID }
func (e ContainerReady) about() (string, int)   { return NameContainerReady, e.CTID }
func (e ContainerStarted) about() (string, int) { return NameContainerStarted, e.CTID }
func (e ContainerStopped) about() (string, int) { return NameContainerStopped, e.CTID }
func (e ContainerRemoved) about() (string, int) { return NameContainerRemoved, e.CTID }
func (e ContainerStatus) about() (string, int)  { return NameContainerStatus, e.CTID }
func (e ContainerPreview) about() (string, int) { return NameContainerPreview, e.CTID }
func (e ContainerFailed) about() (string, int)  { return NameContainerFailed, e.CTID }
func (e ContainerSkipped) about() (string, int) { return NameContainerSkipped, e.CTID }
func (e CAExported) about() (string, int)       { return NameCAExported, e.CTID }
func (e CAFailed) about() (string, int)         { return NameCAFailed, e.CTID }
func (e CAStatus) about() (string, int)         { return NameCAStatus, e.CTID }
func (e CARotation) about() (string, int)       { return NameCARotation, e.CTID }
func (CAFingerprint) about() (string, int)      { return NameCAFingerprint, 0 }
func (e NginxReady) about() (string, int)       { return NameNginxReady, e.CTID }
func (e NginxFailed) about() (string, int)      { return NameNginxFailed, e.CTID }
func (e NginxStatus) about() (string, int)      { return NameNginxStatus, e.CTID }
func (e TraefikReady) about() (string, int)     { return NameTraefikReady, e.CTID }
func (e TraefikFailed) about() (string, int)    { return NameTraefikFailed, e.CTID }
func (e TraefikStatus) about() (string, int)    { return NameTraefikStatus, e.CTID }

// decoders decode the events by name.
var decoders = map[string]func(raw []byte) (Body, error){
	NamePlanDue:          decode[PlanDue],
	NamePlanStarted:      decode[PlanStarted],
	NameContainerPlanned: decode[ContainerPlanned],
	NamePlanDone:         decode[PlanDone],
	NameWarning:          decode[Warning],
	NameCheckPoint:       decode[CheckPoint],
	NameContainerStage:   decode[ContainerStage],
	NameContainerRunning: decode[ContainerRunning],
	NameContainerReady:   decode[ContainerReady],
	NameContainerStarted: decode[ContainerStarted],
	NameContainerStopped: decode[ContainerStopped],
	NameContainerRemoved: decode[ContainerRemoved],
	NameContainerStatus:  decode[ContainerStatus],
	NameContainerPreview: decode[ContainerPreview],
	NameContainerFailed:  decode[ContainerFailed],
	NameContainerSkipped: decode[ContainerSkipped],
	NameCAExported:       decode[CAExported],
	NameCAFailed:         decode[CAFailed],
	NameCAStatus:         decode[CAStatus],
	NameCARotation:       decode[CARotation],
	NameCAFingerprint:    decode[CAFingerprint],
	NameNginxReady:       decode[NginxReady],
	NameNginxFailed:      decode[NginxFailed],
	NameNginxStatus:      decode[NginxStatus],
	NameTraefikReady:     decode[TraefikReady],
	NameTraefikFailed:    decode[TraefikFailed],
	NameTraefikStatus:    decode[TraefikStatus],
}

func decode[B Body](raw []byte) (Body, error) {
	var b B
	err := json.Unmarshal(raw, &b)
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		field := strings.TrimPrefix(wrong.Field, "Plan.") // which is embedded
		if value := gjson.GetBytes(raw, field); strings.HasSuffix(field, "ctid") && value.Exists() {
			return nil, notCTID(field, value.Raw)
		}
		return nil, fmt.Errorf("%s: must not be a JSON %s", field, wrong.Value)
	}
	if err != nil {
		return nil, err
	}
	return b, check(b)
}

func notCTID(field, value string) error {
	return fmt.Errorf("%s: %.100s is not a container id: a number from 100 to 999999999", field, value)
}

// check returns an error for a container id that is none.
func check(b Body) error {
	field := func(name string, ids ...int) error {
		for _, id := range ids {
			if _, err := config.ParseCTID(strconv.Itoa(id)); err != nil {
				return notCTID(name, strconv.Itoa(id))
			}
		}
		return nil
	}
	switch e := b.(type) {
	case PlanStarted:
		err := field("order", e.Order...)
		for _, s := range e.Services {
			for _, id := range []int{s.CTID, s.VMID} {
				if id != 0 { // it is that of something else
					err = cmp.Or(err, field("services", id))
				}
			}
		}
		for _, p := range []*config.Place{e.CA, e.Gateway, e.Proxy} {
			if p != nil {
				err = cmp.Or(err, field("ca, gateway and proxy", p.CTID))
			}
		}
		return err
	case ContainerPlanned:
		if err := cmp.Or(field("needs", e.Needs...), field("external", e.External...)); err != nil {
			return err
		}
	}
	switch name, ctid := b.about(); {
	case ctid != 0:
		return field("ctid", ctid)
	case strings.HasPrefix(name, "ct."):
		return errors.New("ctid is missing")
	}
	return nil
}
