//! What processes wrote.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};

use super::Cluster;

impl Cluster {
    /// The last lines of a process's log.
    #[must_use]
    pub fn tail(&self, name: &str) -> String {
        let text = self.log(name);
        let lines: Vec<&str> = text.lines().collect();
        lines
            .get(lines.len().saturating_sub(15)..)
            .unwrap_or_default()
            .join("\n")
    }

    /// The whole log of a process.
    #[must_use]
    pub fn log(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.layout.log(name)).unwrap_or_default()).into_owned()
    }

    /// Octets that a process has logged: where [`Self::log_since`] may begin.
    #[must_use]
    pub fn log_length(&self, name: &str) -> u64 {
        fs::metadata(self.layout.log(name)).map_or(0, |file| file.len())
    }

    /// What a process logged from there on.
    #[must_use]
    pub fn log_since(&self, name: &str, from: u64) -> String {
        let read = || {
            let mut file = File::open(self.layout.log(name))?;
            file.seek(SeekFrom::Start(from))?;
            let mut octets = Vec::new();
            file.read_to_end(&mut octets)?;
            std::io::Result::Ok(octets)
        };
        String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
    }
}
