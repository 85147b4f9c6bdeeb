#![forbid(unsafe_code)]
//! A file system that forgets: what was not synced is gone when its power is cut.
//!
//! ```text
//!  process ── write, rename, fsync ──▶ kernel (no cache) ──▶ fuse ──▶ Volume ──▶ backing folder
//!                                                                      ▲ │        (durable octets)
//!  test ── cut, lie, eio, space, slow, flip ──▶ control socket ────────┘ └─ memory: what is not synced
//! ```
//!
//! What is durable, and when (the rules of ext4 with `data=ordered`, without its kindnesses):
//!
//! - **Content** of a file, its size, mode and owner: by fsync or fdatasync of it, or by a write with
//!   `O_SYNC` or `O_DSYNC`. Nothing is written back by itself: no timer, no flush at close or rename.
//! - **A name** (create, rename, link, unlink, mkdir): by fsync of the directory it is in, or by fsync of the
//!   file it names: a journal that commits the file commits how it is reached, with all folders above.
//!   A rename is atomic and durable as a whole, also between two directories. Earlier changes of the
//!   same names go with it; other names of the directory do not.
//! - **After a failed fsync** what it covered is lost for good, though it can be read until the power is
//!   cut and though a later fsync succeeds: the page cache calls it clean (pitfall P4).
//! - **At the cut** everything else is gone; or a part of it had reached the disk ([`Cut`]): names as the
//!   journal had them at some moment, content in sectors of 512 octets.
//!
//! Every octet goes through this process: files are opened for direct I/O, names and attributes are
//! never cached by the kernel. A handle opened before a cut is dead after it (EIO).
//!
//! Not here: shared writable mmap (RocksDB and Postfix do without), holes that give space back,
//! extended attributes. Durable names are kept in memory: the volume ends with the process.
//!
//! Entry points: [`Volume`] (no kernel in it), [`fuse::Mounted`], [`control`].

mod content;
pub mod control;
mod faults;
pub mod fuse;
mod names;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
mod volume;

pub use faults::{Cut, Statistics};
pub use volume::{Attributes, Ino, Kind, ROOT, Volume};
