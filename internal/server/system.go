package server

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mintmark-dev/mintmark/internal/audit"
)

const systemStatusPath = "/api/v1/system/status"

// PermissionStatus is what it takes to be told how the system is.
const PermissionStatus = "mintmark:status"

var statusNeed = &need{permissions: []string{PermissionStatus}}

// system knows how this server is, beside what readiness says.
type system struct {
	id        string
	started   time.Time
	ready     *readiness
	indexed   func() int
	recorder  *audit.Recorder // nil: nothing is recorded
	store     Store           // nil: there is none
	once      *ledger
	tombstone *tombstones
}

// systemStatus is the answer of GET /api/v1/system/status.
type systemStatus struct {
	Server string `json:"server"`
	// Status is "ok", "degraded" where something is amiss that requests do not notice,
	// or "unavailable".
	Status  string    `json:"status"`
	Started time.Time `json:"started"`
	// Problems, for people.
	Problems    []string        `json:"problems,omitempty"`
	Credentials int             `json:"credentials"`
	Cluster     clusterStatus   `json:"kubernetes"`
	Database    *databaseStatus `json:"database,omitempty"`
	Audit       *auditStatus    `json:"audit,omitempty"`
}

// clusterStatus tells of the API server. Lengths of time are in seconds.
type clusterStatus struct {
	Heartbeat *float64 `json:"heartbeat_age_seconds,omitempty"`
	Staleness *float64 `json:"staleness_seconds,omitempty"`
	Most      float64  `json:"max_staleness_seconds"`
	// Broken are the watches that are out of touch, by name, and for how long.
	Broken map[string]float64 `json:"broken_watches,omitempty"`
}

type databaseStatus struct {
	Up             bool      `json:"up"`
	Since          time.Time `json:"since,omitzero"`
	Checked        time.Time `json:"checked,omitzero"`
	Trouble        string    `json:"trouble,omitempty"`
	Engine         string    `json:"engine,omitempty"`
	Version        string    `json:"version,omitempty"`
	Schema         int64     `json:"schema,omitempty"`
	Connections    int       `json:"connections,omitempty"`
	MaxConnections int       `json:"max_connections,omitempty"`
	SizeBytes      int64     `json:"size_bytes,omitempty"`
	Latency        float64   `json:"latency_seconds,omitempty"`
	// TombstonesRead: what was revoked before is known from the database.
	TombstonesRead bool `json:"tombstones_read"`
}

type auditStatus struct {
	Recorded     int64     `json:"recorded"`
	Stored       int64     `json:"stored"`
	Lost         int64     `json:"lost"`
	Queued       int64     `json:"queued"`
	Spooled      int64     `json:"spooled_batches"`
	SpooledBytes int64     `json:"spooled_bytes"`
	Damaged      int64     `json:"damaged_records"`
	Waiting      int       `json:"waiting_once"`
	LastStored   time.Time `json:"last_stored,omitzero"`
	Overflowing  bool      `json:"overflowing"`
	Trouble      string    `json:"trouble,omitempty"`
}

// systemStatus tells those who may know how this server is.
func (p *public) systemStatus(x *exchange) *problem {
	x.need = statusNeed
	if d := p.authorize(&x.evaluation); !d.allowed {
		return d.told()
	}
	if p.system == nil {
		return problemNotFound
	}
	return writeJSON(x.w, p.system.status(x.now))
}

func (s *system) status(now time.Time) *systemStatus {
	out := &systemStatus{Server: s.id, Status: "ok", Started: s.started.UTC(), Credentials: s.indexed()}
	for _, c := range s.ready.checks() {
		if err := c.run(now); err != nil {
			out.Status = "unavailable"
			out.Problems = append(out.Problems, c.name+": "+err.Error())
		}
	}
	degraded := func(problem string) {
		out.Problems = append(out.Problems, problem)
		if out.Status == "ok" {
			out.Status = "degraded"
		}
	}
	out.Cluster = s.cluster(now)
	if len(out.Cluster.Broken) > 0 {
		degraded("kubernetes: watches are out of touch")
	}
	if age := out.Cluster.Heartbeat; age == nil || *age > staleAfter.Seconds() {
		degraded("kubernetes: no fresh heartbeat of a controller")
	}
	if s.store != nil {
		out.Database = s.database()
		if !out.Database.Up {
			degraded("database: " + out.Database.Trouble)
		}
	}
	if s.recorder != nil {
		out.Audit = s.audit()
		if out.Audit.Lost > 0 || out.Audit.Overflowing {
			degraded("audit: events have been lost since the start")
		}
		if out.Audit.Trouble != "" { // known at once; the database is looked at now and then
			degraded("audit: events wait for the database: " + out.Audit.Trouble)
		}
	}
	return out
}

func (s *system) cluster(now time.Time) clusterStatus {
	c := clusterStatus{Most: s.ready.maxStaleness.Seconds()}
	if age, seen := s.ready.freshness.heartbeatAge(now); seen {
		seconds := age.Seconds()
		c.Heartbeat = &seconds
	}
	if age, ok := s.ready.age(now); ok {
		seconds := age.Seconds()
		c.Staleness = &seconds
	}
	if loops := s.ready.loops.Load(); loops != nil {
		for _, l := range *loops {
			if h := l.Health(); h.Err != nil {
				if c.Broken == nil {
					c.Broken = map[string]float64{}
				}
				c.Broken[l.Name()] = now.Sub(h.BrokenSince).Seconds()
			}
		}
	}
	return c
}

func (s *system) database() *databaseStatus {
	st := s.store.State()
	return &databaseStatus{
		Up: st.Up, Since: st.Since.UTC(), Checked: st.Checked.UTC(), Trouble: st.Trouble, Engine: st.Health.Engine, Version: st.Health.Version,
		Schema: st.Health.Schema, Connections: st.Health.Connections, MaxConnections: st.Health.MaxConnections, SizeBytes: st.Health.Size,
		Latency: st.Health.Latency.Seconds(), TombstonesRead: s.tombstone != nil && s.tombstone.loaded.Load(),
	}
}

func (s *system) audit() *auditStatus {
	h := s.recorder.Health()
	waiting, lost := s.once.depth()
	return &auditStatus{
		Recorded: h.Taken, Stored: h.Stored, Lost: h.Lost + lost, Queued: h.Queued, Spooled: h.Spooled, SpooledBytes: h.SpooledBytes, Damaged: h.Damaged,
		Waiting: waiting, LastStored: h.LastStored.UTC(), Overflowing: h.Full, Trouble: h.Trouble,
	}
}

// registerAudit has the audit log and the store measured.
func registerAudit(registry prometheus.Registerer, recorder *audit.Recorder, once *ledger, s Store) {
	if recorder == nil {
		return
	}
	for result, of := range map[string]func(audit.Health) int64{
		"recorded": func(h audit.Health) int64 { return h.Taken }, "stored": func(h audit.Health) int64 { return h.Stored },
		"lost": func(h audit.Health) int64 { return h.Lost },
	} {
		registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "mintmark_audit_events_total", ConstLabels: prometheus.Labels{"result": result},
			Help: "Events of the audit log since the start: recorded, of these stored (or written out, without a store), and lost.",
		}, func() float64 { return float64(of(recorder.Health())) }))
	}
	for _, g := range []struct {
		name, help string
		value      func(audit.Health) float64
	}{
		{"mintmark_audit_queue_events", "Events that wait in memory.", func(h audit.Health) float64 { return float64(h.Queued) }},
		{"mintmark_audit_spool_bytes", "Bytes of the spool on disk that wait for the store.", func(h audit.Health) float64 { return float64(h.SpooledBytes) }},
		{"mintmark_audit_spool_batches", "Batches of the spool on disk that wait for the store.", func(h audit.Health) float64 { return float64(h.Spooled) }},
		{"mintmark_audit_damaged_records", "Records of the spool that could not be read.", func(h audit.Health) float64 { return float64(h.Damaged) }},
		{"mintmark_audit_overflowing", "1 while events are being lost.", func(h audit.Health) float64 { return oneIf(h.Full) }},
	} {
		registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: g.name, Help: g.help}, func() float64 { return g.value(recorder.Health()) }))
	}
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "mintmark_audit_waiting_once", Help: "Events that are recorded once for good and wait for the store.",
	}, func() float64 { waiting, _ := once.depth(); return float64(waiting) }))
	if s == nil {
		return
	}
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "mintmark_store_up", Help: "1 while the database answers and its schema fits.",
	}, func() float64 { return oneIf(s.State().Up) }))
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "mintmark_store_connections", Help: "Connections to the database.",
	}, func() float64 { return float64(s.State().Health.Connections) }))
}

func oneIf(ok bool) float64 {
	if ok {
		return 1
	}
	return 0
}
