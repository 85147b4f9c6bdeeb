//! What happened, in order: a hash to compare two runs by, and lines to read.
use std::{
    fmt::Arguments,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Of this process: it runs one simulation.
static TRACE: Mutex<Trace> = Mutex::new(Trace {
    hash: 0xcbf2_9ce4_8422_2325,
    events: 0,
    print: false,
    at_ms: 0,
});

#[derive(Debug)]
struct Trace {
    hash: u64,
    events: u64,
    print: bool,
    at_ms: u64,
}

fn lock() -> MutexGuard<'static, Trace> {
    TRACE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Also says every event on standard error.
pub(crate) fn print() {
    lock().print = true;
}

/// The simulated time of what follows.
pub(crate) fn at(ms: u64) {
    lock().at_ms = ms;
}

/// The simulated time.
pub(crate) fn now() -> u64 {
    lock().at_ms
}

/// One event.
pub(crate) fn note(what: Arguments<'_>) {
    let mut t = lock();
    let line = format!("{:>9} {what}", t.at_ms);
    for b in line.bytes() {
        t.hash = (t.hash ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    t.events += 1;
    if t.print {
        eprintln!("{line}");
    }
}

/// Number of events, and the hash over all.
pub(crate) fn sum() -> (u64, u64) {
    let t = lock();
    (t.events, t.hash)
}

/// `note!("format", ...)`.
#[macro_export]
macro_rules! note {
    ($($arg:tt)*) => { $crate::trace::note(format_args!($($arg)*)) };
}
