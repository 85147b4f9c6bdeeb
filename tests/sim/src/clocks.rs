//! Wall clocks that are wrong, one per host.
//!
//! turmoil runs one host at a time and names it in a tracing span: a subscriber layer follows that.
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tracing::{
    Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id},
};
use tracing_subscriber::{Layer, layer::Context, registry::LookupSpan};

static CLOCKS: Mutex<Clocks> = Mutex::new(Clocks {
    current: String::new(),
    skew_ms: BTreeMap::new(),
});

struct Clocks {
    current: String,
    skew_ms: BTreeMap<String, i64>,
}

/// From now on the clock of a host is wrong by so much.
pub(crate) fn skew(host: &str, ms: i64) {
    let mut c = CLOCKS.lock().unwrap_or_else(PoisonError::into_inner);
    c.skew_ms.insert(host.to_owned(), ms);
}

pub(crate) fn skewed(now: Duration) -> Duration {
    let c = CLOCKS.lock().unwrap_or_else(PoisonError::into_inner);
    match c.skew_ms.get(&c.current).copied().unwrap_or(0) {
        ms if ms >= 0 => now + Duration::from_millis(ms.unsigned_abs()),
        ms => now.saturating_sub(Duration::from_millis(ms.unsigned_abs())),
    }
}

/// Follows which host runs.
#[derive(Debug)]
pub(crate) struct CurrentHost;

struct Name(String);

#[derive(Default)]
struct Named(Option<String>);

impl Visit for Named {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "name" {
            self.0 = Some(value.to_owned());
        }
    }
    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for CurrentHost {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if attributes.metadata().name() != "node" {
            return;
        }
        let mut named = Named::default();
        attributes.record(&mut named);
        if let (Some(name), Some(span)) = (named.0, context.span(id)) {
            span.extensions_mut().insert(Name(name));
        }
    }
    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(Name(name)) = span.extensions().get::<Name>()
        {
            let mut c = CLOCKS.lock().unwrap_or_else(PoisonError::into_inner);
            c.current.clone_from(name);
        }
    }
}
