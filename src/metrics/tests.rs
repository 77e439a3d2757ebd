//! The metrics as a scraper sees them.

use super::*;
use std::io::Write;
use std::process::{Command, Stdio};

const REASONS: &[&str] = &["client_fin", "backend_reset"];

/// One of everything, each counted at least once.
struct Busy {
    info: Series<Gauge>,
    metrics: Arc<Metrics>,
    worker: WorkerMetrics,
    listener: ListenerMetrics,
    rule: Series<Counter>,
    pool: PoolMetrics,
    hold: HoldMetrics,
    limit: LimitMetrics,
    backend: BackendMetrics,
    memory: CgroupMemoryMetrics,
    queue: AcceptQueueMetrics,
}

impl Busy {
    fn new() -> Self {
        let metrics = Arc::new(Metrics::new().unwrap());
        let worker = metrics.worker(1);
        worker.handed_over.inc();
        let listener = metrics.listener(&ListenerName::new("web"), REASONS);
        let pool = metrics.pool(&PoolName::new("app"));
        let backend = metrics.backend(&PoolName::new("app"), "a \"quoted\"\\name");
        listener.accept_error("EMFILE");
        listener.accept_error("EMFILE");
        listener.closed[1].inc();
        listener.duration.observe(0.2);
        listener.preread().observe(0.2);
        let rule = metrics.rule(&ListenerName::new("web"), "search");
        rule.inc_by(2);
        pool.connect_wait.observe(0.002);
        backend.bytes[Direction::ToClient as usize].inc_by(7);
        for &reason in ConnectErrorReason::ALL {
            backend.connect_error(reason);
        }
        for &result in CheckResult::ALL {
            backend.health_check(result);
        }
        for &failure in TrafficFailure::ALL {
            backend.traffic_failure(failure);
        }
        backend.ejected();
        listener.proxy_header(ProxyVersion::V2, ProxyResult::Local);
        metrics.task_restarted("health");
        metrics.task_restarted("health");
        metrics.log_dropped(LogKind::Access).inc_by(3);
        let (memory, queue) = (metrics.cgroup_memory(), metrics.accept_queue(&ListenerName::new("web")));
        memory.limit.set(5);
        queue.limit.set(4_096);
        let hold = metrics.hold(&PoolName::new("app"));
        hold.outcomes[HoldOutcome::Expired as usize].inc();
        pool.queue().outcome(QueueOutcome::Served).inc();
        pool.shed();
        backend.set_max_connections(Some(9));
        let limit = LimitMetrics::new(&metrics, Scope::Shared, "all", true, true);
        limit.refused(Bound::Connections, false);
        let info = metrics.config_info("00000000deadbeef");
        Self { info, metrics, worker, listener, rule, pool, hold, limit, backend, memory, queue }
    }

    fn text(&self) -> String {
        self.metrics.encode().unwrap()
    }
}

#[track_caller]
fn has(text: &str, line: &str) {
    assert!(text.lines().any(|have| have == line), "no line `{line}` in\n{text}");
}

#[test]
fn every_family_shows_its_values() {
    let text = Busy::new().text();
    has(&text, r#"tidegate_listener_accept_errors_total{listener="web",errno="EMFILE"} 2"#);
    has(&text, r#"tidegate_proxy_headers_total{listener="web",version="v2",result="local"} 1"#);
    has(&text, r#"tidegate_connections_closed_total{listener="web",reason="backend_reset"} 1"#);
    has(&text, r#"tidegate_connections_closed_total{listener="web",reason="client_fin"} 0"#);
    has(&text, r#"tidegate_backend_bytes_total{pool="app",backend="a \"quoted\"\\name",direction="to_client"} 7"#);
    has(&text, r#"tidegate_connection_duration_seconds_bucket{listener="web",le="1"} 1"#);
    has(&text, r#"tidegate_preread_seconds_bucket{listener="web",le="0.25"} 1"#);
    has(&text, r#"tidegate_route_sessions_total{listener="web",rule="search"} 2"#);
    has(&text, r#"tidegate_worker_handed_over_total{worker="1"} 1"#);
    has(&text, r#"tidegate_task_restarts_total{task="health"} 2"#);
    has(&text, r#"tidegate_backend_ejections_total{pool="app",backend="a \"quoted\"\\name"} 1"#);
    has(&text, r#"tidegate_pool_hold_outcomes_total{pool="app",outcome="expired"} 1"#);
    has(&text, r#"tidegate_pool_queue_outcomes_total{pool="app",outcome="served"} 1"#);
    has(
        &text,
        r#"tidegate_limit_refusals_total{scope="shared",name="all",dry_run="false",reason="max_connections"} 1"#,
    );
    has(&text, r#"tidegate_log_dropped_total{log="access"} 3"#);
    has(&text, r#"tidegate_log_dropped_total{log="ops"} 0"#);
    has(&text, &format!(r#"tidegate_build_info{{version="{}"}} 1"#, env!("CARGO_PKG_VERSION")));
    for name in names::ALL {
        assert!(text.contains(&format!("# TYPE {} ", name.name)), "{} is not exposed:\n{text}", name.name);
    }
    for name in ["process_open_fds", "process_max_fds", "process_resident_memory_bytes"] {
        assert!(text.contains(&format!("# TYPE {name} gauge")), "{name} is not exposed:\n{text}");
    }
}

#[test]
fn every_sample_has_the_labels_of_its_family() {
    let text = Busy::new().text();
    for name in names::ALL {
        let starts = [format!("{}{{", name.name), format!("{}_sum{{", name.name), format!("{} ", name.name)];
        let samples = text.lines().filter(|line| starts.iter().any(|start| line.starts_with(start)));
        for sample in samples {
            let places: Vec<_> = name.labels.iter().map(|label| sample.find(&format!("{label}=\""))).collect();
            assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{sample}: {:?}", name.labels);
            // The one value with quotes has two escaped ones.
            let quotes = sample.matches('"').count() - sample.matches("\\\"").count();
            assert_eq!(quotes, 2 * name.labels.len(), "{sample}");
        }
    }
}

#[test]
fn series_go_with_their_handles() {
    let Busy { metrics, worker, listener, rule, pool, hold, limit, backend, memory, queue, info } = Busy::new();
    drop((worker, listener, rule, pool, hold, limit, backend, memory, queue, info));
    let text = metrics.encode().unwrap();
    assert!(!text.contains("cgroup_memory"), "{text}");
    for label in ["worker=", "listener=", "pool=", "backend="] {
        assert!(!text.contains(label), "{label} is left over:\n{text}");
    }
}

/// A backend that a reload took away and brought back, while sessions of the old one were still running.
#[test]
fn a_backend_that_comes_back_keeps_its_series() {
    let metrics = Arc::new(Metrics::new().unwrap());
    let backend = || metrics.backend(&PoolName::new("app"), "a");
    let old = backend();
    old.active.inc();
    old.connect_error(ConnectErrorReason::Refused);
    let new = backend();
    new.active.inc();
    has(&metrics.encode().unwrap(), r#"tidegate_backend_connections_active{pool="app",backend="a"} 2"#);
    old.active.dec();
    drop(old);
    let text = metrics.encode().unwrap();
    has(&text, r#"tidegate_backend_connections_active{pool="app",backend="a"} 1"#);
    assert!(!text.contains("connect_errors"), "{text}");
    drop(new);
}

#[test]
fn label_enums_index_their_series() {
    for (index, &reason) in ConnectErrorReason::ALL.iter().enumerate() {
        assert_eq!(reason as usize, index);
    }
    for (index, &result) in CheckResult::ALL.iter().enumerate() {
        assert_eq!(result as usize, index);
    }
    assert_eq!(LogKind::ALL, LogKind::BOTH);
    assert_eq!(Direction::BOTH.map(|direction| direction as usize), [0, 1]);
}

/// The linter of the people who defined the format. It comes with Debian's `prometheus`; `tests/` runs it against
/// the binary and insists on it.
#[test]
fn promtool_finds_no_fault() {
    let promtool =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut promtool) = promtool else {
        eprintln!("promtool is not installed: not checked here");
        return;
    };
    let text = Busy::new().text();
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let verdict = promtool.wait_with_output().unwrap();
    assert!(
        verdict.status.success() && verdict.stderr.is_empty(),
        "{}\n{text}",
        String::from_utf8_lossy(&verdict.stderr)
    );
}
