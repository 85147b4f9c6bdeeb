//! Work that may block: moved away from the runtime's workers where there are others, done in place
//! where there is one thread only (a current-thread runtime: unit tests, simulation).
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::mpsc,
    task::{JoinError, JoinHandle, block_in_place, spawn_blocking},
};

fn threads() -> bool {
    Handle::try_current().is_ok_and(|h| h.runtime_flavor() == RuntimeFlavor::MultiThread)
}

/// Short work on this thread; the worker's other tasks move.
pub fn in_place<T>(work: impl FnOnce() -> T) -> T {
    if threads() {
        block_in_place(work)
    } else {
        work()
    }
}

/// Long work on a thread of its own.
pub async fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    if threads() {
        spawn_blocking(work).await
    } else {
        Ok(work())
    }
}

/// Where work puts what it makes, one after another.
#[derive(Debug)]
pub struct Outlet<T>(Way<T>);

#[derive(Debug)]
enum Way<T> {
    Channel(mpsc::Sender<T>),
    /// Nobody could take it while the work runs on the only thread.
    Kept(Vec<T>),
}

/// The receiver is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the receiver is gone")]
pub struct Gone;

impl<T> Outlet<T> {
    /// Waits for room.
    pub fn send(&mut self, item: T) -> Result<(), Gone> {
        match &mut self.0 {
            Way::Channel(tx) => tx.blocking_send(item).map_err(|_| Gone),
            Way::Kept(kept) => {
                kept.push(item);
                Ok(())
            }
        }
    }
}

/// Long work that yields items on its way, at most `room` of them ahead of who takes them.
pub fn produce<T: Send + 'static, R: Send + 'static>(
    room: usize,
    work: impl FnOnce(&mut Outlet<T>) -> R + Send + 'static,
) -> (mpsc::Receiver<T>, JoinHandle<R>) {
    let (tx, rx) = mpsc::channel(room);
    let task = if threads() {
        spawn_blocking(move || work(&mut Outlet(Way::Channel(tx))))
    } else {
        tokio::spawn(async move {
            let mut outlet = Outlet(Way::Kept(Vec::new()));
            let result = work(&mut outlet);
            if let Way::Kept(kept) = outlet.0 {
                for item in kept {
                    if tx.send(item).await.is_err() {
                        break;
                    }
                }
            }
            result
        })
    };
    (rx, task)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    async fn everything_arrives_in_order() {
        assert_eq!(in_place(|| 1), 1);
        assert_eq!(run(|| 2).await.unwrap(), 2);
        let (mut rx, task) = produce(1, |out| {
            for n in 0..5 {
                out.send(n)?;
            }
            Ok::<_, Gone>(())
        });
        let mut got = Vec::new();
        while let Some(n) = rx.recv().await {
            got.push(n);
        }
        assert_eq!(got, [0, 1, 2, 3, 4]);
        assert!(task.await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn one_thread_does_it_in_place() {
        everything_arrives_in_order().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn many_threads_move_it() {
        everything_arrives_in_order().await;
    }
}
