//! Negative controls: the product with one rule broken, so that it can be seen who notices.
//!
//! The place that keeps a rule asks [`mutant`] whether this process is the one that breaks it. Without
//! the feature `mutants` the answer is the constant `false`: nothing of this crate is in the product.
//! With it one build holds all mutants, and the environment variable `SEALANE_MUTANT` chooses one (none
//! if it is not set). The first time that the broken place is reached, the process says so on standard
//! error and in the file that `SEALANE_MUTANT_REACHED` names: a test that fails without that failed for
//! another reason.
//!
//! `make mutants` runs them all; the table of what they break and what caught them is in
//! docs/consistency.md.
#![forbid(unsafe_code)]

#[cfg(all(feature = "mutants", not(debug_assertions)))]
compile_error!(
    "the feature `mutants` breaks rules on purpose: it is for test builds, never for a release"
);

/// A rule that can be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// 250 is said before the entry is committed.
    M1,
    /// The callback of an append runs before the sync.
    M2,
    /// A vote is answered before it is synced.
    M3,
    /// The result of any lease is accepted, whatever its epoch.
    M4,
    /// A repeated enqueue is stored again.
    M5,
    /// A body goes when its message is finished, though its entry may still be sent to a member.
    M6,
    /// A bare LF ends a line of DATA, so that LF "." LF ends the data.
    M7,
    /// Octets that came behind STARTTLS in clear are executed inside TLS.
    M8,
    /// Where STARTTLS is not offered, mail goes in clear.
    M9,
    /// Log entries go without a record of where the log begins now.
    M10,
    /// A received snapshot is installed without a look at its digest.
    M11,
    /// A node's id is the ordinal in its name.
    M12,
    /// A sync that failed is tried again.
    M13,
    /// The null reverse-path gets reports.
    M14,
    /// A failed TLSA lookup counts as no TLSA records.
    M15,
    /// An enqueue that was withdrawn is answered as durable.
    M16,
    /// The leader answers an unknown outcome as "nothing was proposed".
    M17,
    /// The relay takes an answer that was lost for "nothing was proposed".
    M18,
    /// The state machine leases what is leased.
    M19,
    /// It does, and the dispatcher offers what is leased.
    M20,
}

/// Whether this process breaks that rule: never, in a product build.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
#[must_use]
pub const fn mutant(_: Mutant) -> bool {
    false
}

#[cfg(feature = "mutants")]
pub use chosen::mutant;

#[cfg(feature = "mutants")]
mod chosen {
    use super::Mutant::{self, *};
    use std::sync::{Once, OnceLock};

    /// In every build that can break a rule; looked for in those that must not.
    static MARKER: &str = "sealane-mutant-build";
    const VARIABLE: &str = "SEALANE_MUTANT";
    const REACHED: &str = "SEALANE_MUTANT_REACHED";
    const ALL: [Mutant; 20] = [
        M1, M2, M3, M4, M5, M6, M7, M8, M9, M10, M11, M12, M13, M14, M15, M16, M17, M18, M19, M20,
    ];

    fn choose() -> Option<Mutant> {
        let wanted = std::env::var(VARIABLE).ok()?;
        let one = ALL.into_iter().find(|m| format!("{m:?}") == wanted);
        assert!(one.is_some(), "{VARIABLE}: no mutant is named {wanted:?}");
        one
    }

    fn say(one: Mutant) {
        eprintln!("{MARKER}: {one:?} breaks a rule on purpose");
        if let Some(file) = std::env::var_os(REACHED) {
            let wrote = std::fs::write(&file, format!("{one:?}"));
            assert!(
                wrote.is_ok(),
                "{REACHED}: {} cannot be written",
                file.display()
            );
        }
    }

    /// Whether this process breaks that rule.
    #[must_use]
    pub fn mutant(one: Mutant) -> bool {
        static CHOSEN: OnceLock<Option<Mutant>> = OnceLock::new();
        static SAID: Once = Once::new();
        let on = *CHOSEN.get_or_init(choose) == Some(one);
        if on {
            SAID.call_once(|| say(one));
        }
        on
    }
}
