//! Logs to standard error and spans to an OTLP collector. Neither ever waits for its reader: spans
//! go through a bounded queue and are dropped when it is full.
use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::{TraceContextExt, TracerProvider},
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use sealane_types::TraceContext;
use serde::Deserialize;
use std::time::Duration;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{
    EnvFilter, Layer, filter::FilterFn, layer::SubscriberExt, util::SubscriberInitExt,
};

const EXPORT: Duration = Duration::from_secs(2);

/// How a process reports.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// OTLP/gRPC collector, "http://host:4317"; absent: no spans are exported.
    pub otlp_endpoint: Option<String>,
    /// Form of the log.
    pub log_format: LogFormat,
    /// As in RUST_LOG; default "info".
    pub log_filter: Option<String>,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For eyes.
    #[default]
    Text,
    /// One object per line.
    Json,
}

/// Flushes spans at the end.
#[derive(Debug)]
pub struct TelemetryGuard(Option<SdkTracerProvider>);

impl TelemetryGuard {
    /// Exports what is queued, for at most two seconds.
    pub fn shutdown(self) {
        if let Some(p) = self.0 {
            let _ = p.shutdown_with_timeout(EXPORT);
        }
    }
}

/// Starts logs and spans. Needs a running tokio runtime if there is a collector.
pub fn init(
    service: &str,
    instance: &str,
    config: &TelemetryConfig,
) -> anyhow::Result<TelemetryGuard> {
    let filter = EnvFilter::try_new(
        config
            .log_filter
            .as_deref()
            .unwrap_or("info,openraft=error,opentelemetry=off"),
    )?;
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let log = match config.log_format {
        LogFormat::Text => log.with_ansi(false).boxed(),
        LogFormat::Json => log.json().boxed(),
    };
    let provider = match &config.otlp_endpoint {
        None => None,
        Some(endpoint) => {
            let exporter = SpanExporter::builder()
                .with_tonic()
                .with_endpoint(endpoint)
                .with_timeout(EXPORT)
                .build()?;
            let resource = Resource::builder()
                .with_service_name(service.to_owned())
                .with_attribute(KeyValue::new("service.instance.id", instance.to_owned()))
                .build();
            Some(
                SdkTracerProvider::builder()
                    .with_batch_exporter(exporter)
                    .with_resource(resource)
                    .build(),
            )
        }
    };
    let spans = provider.as_ref().map(|p| {
        // Our own spans only: the exporter's gRPC must not trace itself.
        let ours = FilterFn::new(|m| {
            m.is_span()
                && *m.level() <= tracing::Level::INFO
                && ["sealane", "control_plane", "relay_node"]
                    .iter()
                    .any(|t| m.target().starts_with(t))
        });
        tracing_opentelemetry::layer()
            .with_tracer(p.tracer("sealane"))
            .with_filter(ours)
    });
    // Without a collector nobody looks at spans, and a span that nobody looks at costs nothing.
    let traced = provider.is_some();
    let log = log
        .with_filter(FilterFn::new(move |m| traced || m.is_event()))
        .with_filter(filter);
    tracing_subscriber::registry()
        .with(spans)
        .with(log)
        .try_init()?;
    Ok(TelemetryGuard(provider))
}

struct Carrier(TraceContext);

impl Injector for Carrier {
    fn set(&mut self, key: &str, value: String) {
        match key {
            "traceparent" => self.0.traceparent = value,
            "tracestate" => self.0.tracestate = value,
            _ => {}
        }
    }
}

impl Extractor for Carrier {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => Some(&self.0.traceparent),
            "tracestate" => Some(&self.0.tracestate),
            _ => None,
        }
    }
    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

/// The W3C context of `span`, for another process to continue; empty if it is not traced.
pub fn current_context(span: &Span) -> TraceContext {
    let context = span.context();
    if !context.span().span_context().is_valid() {
        return TraceContext::default();
    }
    let mut carrier = Carrier(TraceContext::default());
    TraceContextPropagator::new().inject_context(&context, &mut carrier);
    carrier.0
}

/// Makes `span` a child of a span of another process. Call it before the span is entered.
pub fn set_parent(span: &Span, parent: &TraceContext) {
    if parent.traceparent.is_empty() {
        return;
    }
    let context = TraceContextPropagator::new()
        .extract_with_context(&Context::new(), &Carrier(parent.clone()));
    let _ = span.set_parent(context);
}
