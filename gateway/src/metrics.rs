//! What a gateway counts. Labels are few and fixed: never a user, a device or a timeline.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::MetricsRegistry;

/// One label with a value from a fixed list.
pub(crate) type Label = [(&'static str, &'static str); 1];

/// The counters; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    pub(crate) connections: Gauge,
    pub(crate) websockets: Gauge,
    pub(crate) accepted: Counter,
    pub(crate) refused: Family<Label, Counter>,
    pub(crate) closed: Family<Label, Counter>,
    pub(crate) requests: Family<Label, Counter>,
    pub(crate) errors: Family<Label, Counter>,
    pub(crate) send_seconds: Histogram,
    pub(crate) subscriptions: Gauge,
    pub(crate) pushes: Counter,
    pub(crate) pushes_dropped: Counter,
    pub(crate) notifies: Counter,
    pub(crate) written_bytes: Counter,
    pub(crate) registered: Gauge,
    pub(crate) registrations: Family<Label, Counter>,
}

impl Metrics {
    /// Registers all of them.
    pub(crate) fn register(registry: &MetricsRegistry) -> Self {
        // 0.5 ms doubling to 16 s: an ack is a majority's fsync, an election some seconds.
        let buckets = (0..16).map(|power| 0.0005 * f64::from(1 << power));
        let metrics = Self {
            connections: Gauge::default(),
            websockets: Gauge::default(),
            accepted: Counter::default(),
            refused: Family::default(),
            closed: Family::default(),
            requests: Family::default(),
            errors: Family::default(),
            send_seconds: Histogram::new(buckets),
            subscriptions: Gauge::default(),
            pushes: Counter::default(),
            pushes_dropped: Counter::default(),
            notifies: Counter::default(),
            written_bytes: Counter::default(),
            registered: Gauge::default(),
            registrations: Family::default(),
        };
        let mut registry = registry.lock();
        metrics.name_all(&mut registry);
        metrics.name_registration(&mut registry);
        registry.register(
            "mailbox_gateway_send_seconds",
            "Time from reading a send to its ack",
            metrics.send_seconds.clone(),
        );
        drop(registry);
        metrics
    }

    fn name_registration(&self, registry: &mut prometheus_client::registry::Registry) {
        registry.register(
            "mailbox_gateway_registered",
            "1 while the cluster knows this gateway, as it said last",
            self.registered.clone(),
        );
        registry.register(
            "mailbox_gateway_registrations",
            "Times the cluster was told that this gateway is there, by outcome",
            self.registrations.clone(),
        );
    }

    fn name_all(&self, registry: &mut prometheus_client::registry::Registry) {
        let m = self.clone();
        let mut gauge = |name, help, gauge: Gauge| registry.register(name, help, gauge);
        gauge(
            "mailbox_gateway_connections_open",
            "TCP connections open now",
            m.connections,
        );
        gauge(
            "mailbox_gateway_websockets_open",
            "WebSockets open now",
            m.websockets,
        );
        gauge(
            "mailbox_gateway_subscriptions_open",
            "Timelines subscribed to upstream",
            m.subscriptions,
        );
        let mut counter = |name, help, counter: Counter| registry.register(name, help, counter);
        counter(
            "mailbox_gateway_connections_accepted",
            "TCP connections accepted",
            m.accepted,
        );
        counter(
            "mailbox_gateway_pushes_queued",
            "Push frames queued for clients",
            m.pushes,
        );
        counter(
            "mailbox_gateway_pushes_dropped",
            "Push frames dropped because the client is slow",
            m.pushes_dropped,
        );
        counter(
            "mailbox_gateway_notifies_written",
            "Notify frames written",
            m.notifies,
        );
        counter(
            "mailbox_gateway_frames_written_bytes",
            "Bytes of frames written",
            m.written_bytes,
        );
        let mut family = |name, help, family: Family<Label, Counter>| {
            registry.register(name, help, family);
        };
        family(
            "mailbox_gateway_connections_refused",
            "Connections and upgrades refused, by reason",
            m.refused,
        );
        family(
            "mailbox_gateway_websockets_closed",
            "WebSockets ended, by reason",
            m.closed,
        );
        family(
            "mailbox_gateway_requests",
            "Requests of clients, by kind",
            m.requests,
        );
        family(
            "mailbox_gateway_errors",
            "Requests answered with an error, by code",
            m.errors,
        );
    }
}
