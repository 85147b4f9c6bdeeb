//! An OTLP collector in the test's own process: keeps every span it is sent.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use data_encoding::HEXLOWER;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// A span as exported.
#[derive(Debug, Clone)]
pub struct Span {
    /// `service.name` of the process.
    pub service: String,
    /// `service.instance.id` of the process.
    pub instance: String,
    pub name: String,
    pub trace: String,
    pub id: String,
    /// Empty: a root.
    pub parent: String,
    pub attributes: HashMap<String, String>,
}

type Spans = Arc<Mutex<Vec<Span>>>;

/// A running collector.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    spans: Spans,
    task: JoinHandle<()>,
}

impl Collector {
    /// Opens it on a free port.
    ///
    /// # Errors
    /// When no port can be opened.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let spans = Spans::default();
        let service = TraceServiceServer::new(Keeper(Arc::clone(&spans)));
        let task = tokio::spawn(async move {
            let served = Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpIncoming::from(listener))
                .await;
            if let Err(error) = served {
                eprintln!("collector ended: {error}");
            }
        });
        Ok(Self {
            address,
            spans,
            task,
        })
    }

    /// What goes into `telemetry.otlpEndpoint`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All spans so far.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        self.spans
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone()
    }

    /// Waits until some trace satisfies `complete`; gives its spans.
    ///
    /// # Errors
    /// When none does in time; shows the traces there are.
    pub async fn trace_with(
        &self,
        limit: Duration,
        complete: impl Fn(&[Span]) -> bool,
    ) -> Result<Vec<Span>> {
        crate::wait::until("a complete trace", limit, || {
            let traces = self.traces();
            let found = traces.values().find(|spans| complete(spans)).cloned();
            async move { found.with_context(|| show(&traces)) }
        })
        .await
    }

    fn traces(&self) -> HashMap<String, Vec<Span>> {
        let mut traces: HashMap<String, Vec<Span>> = HashMap::new();
        for span in self.spans() {
            traces.entry(span.trace.clone()).or_default().push(span);
        }
        traces
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The largest traces as indented trees.
fn show(traces: &HashMap<String, Vec<Span>>) -> String {
    let mut traces: Vec<&Vec<Span>> = traces.values().collect();
    traces.sort_by_key(|spans| std::cmp::Reverse(spans.len()));
    let trees: Vec<String> = traces.iter().take(3).map(|spans| tree(spans)).collect();
    format!(
        "{} traces, the largest:\n{}",
        traces.len(),
        trees.join("--\n")
    )
}

/// One trace as an indented tree; spans whose parent was not exported stand at the left.
#[must_use]
pub fn tree(spans: &[Span]) -> String {
    let mut out = String::new();
    for span in spans {
        if !spans.iter().any(|other| other.id == span.parent) {
            branch(spans, span, 0, &mut out);
        }
    }
    out
}

fn branch(spans: &[Span], span: &Span, depth: usize, out: &mut String) {
    out.push_str(&format!(
        "{}{} ({})\n",
        "  ".repeat(depth),
        span.name,
        span.instance
    ));
    for child in spans.iter().filter(|other| other.parent == span.id) {
        branch(spans, child, depth + 1, out);
    }
}

#[derive(Debug)]
struct Keeper(Spans);

#[tonic::async_trait]
impl TraceService for Keeper {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut kept = self
            .0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        for resource in request.into_inner().resource_spans {
            let about = attributes(
                resource
                    .resource
                    .map(|resource| resource.attributes)
                    .unwrap_or_default(),
            );
            for span in resource
                .scope_spans
                .into_iter()
                .flat_map(|scope| scope.spans)
            {
                kept.push(Span {
                    service: about.get("service.name").cloned().unwrap_or_default(),
                    instance: about
                        .get("service.instance.id")
                        .cloned()
                        .unwrap_or_default(),
                    name: span.name,
                    trace: HEXLOWER.encode(&span.trace_id),
                    id: HEXLOWER.encode(&span.span_id),
                    parent: HEXLOWER.encode(&span.parent_span_id),
                    attributes: attributes(span.attributes),
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn attributes(list: Vec<KeyValue>) -> HashMap<String, String> {
    list.into_iter()
        .map(|pair| (pair.key, pair.value.map_or_else(String::new, text)))
        .collect()
}

fn text(value: AnyValue) -> String {
    match value.value {
        Some(any_value::Value::StringValue(text)) => text,
        Some(any_value::Value::BoolValue(yes)) => yes.to_string(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        Some(any_value::Value::DoubleValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}
