//! Why a pass was not made to its end. It is made again after a pause.
use crate::certificates::IssueError;
use std::time::Duration;

/// Something outside failed. What is wrong with a resource is no failure: it is said in its status.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The API server refused, or did not answer.
    #[error("{doing}: {}", api_text(.cause))]
    Api {
        /// What was attempted: "apply StatefulSet mail-control".
        doing: String,
        /// As the client says it.
        cause: kube::Error,
    },
    /// The API server took an object, and answered with one that is none of its kind.
    #[error("what the API server answered about a {kind} is none: {cause}")]
    Answer {
        /// Of the object.
        kind: String,
        /// As the client says it.
        cause: kube::core::dynamic::ParseDynamicObjectError,
    },
    /// A certificate could not be made.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// It took too long altogether.
    #[error(
        "the pass took longer than {0:?}: the API server or the control plane answers too slowly"
    )]
    TooLong(Duration),
}

impl Failure {
    /// For `map_err`.
    pub(crate) fn api(doing: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let doing = doing.into();
        move |cause| Self::Api { doing, cause }
    }

    /// The API server understood, and will say the same again until a person changes something.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::Api {
                cause: kube::Error::Api(s),
                ..
            } => s.is_invalid() || s.is_forbidden(),
            _ => false,
        }
    }
}

/// What the API server said, without the client's debug output around it.
fn api_text(e: &kube::Error) -> String {
    match e {
        kube::Error::Api(s) if !s.message.is_empty() => s.message.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    #[test]
    fn a_failure_says_what_was_attempted_and_what_the_server_said() {
        let refused = Status::failure("spec.replicas: must be positive", "Invalid").with_code(422);
        let f = Failure::api("apply StatefulSet mail-control")(kube::Error::Api(refused.boxed()));
        assert_eq!(
            f.to_string(),
            "apply StatefulSet mail-control: spec.replicas: must be positive"
        );
    }
}
