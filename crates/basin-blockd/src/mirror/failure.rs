//! Pure. Why a mirror has failed.

use crate::control::MirrorPhase;
use crate::nbd::client::NbdError;

/// Why, and whether room on the other side would have helped.
#[derive(Debug)]
pub struct Failure {
    why: String,
    full: bool,
}

impl From<Failure> for MirrorPhase {
    fn from(failure: Failure) -> MirrorPhase {
        MirrorPhase::Failed { reason: failure.why, full: failure.full }
    }
}

impl From<NbdError> for Failure {
    fn from(error: NbdError) -> Failure {
        Failure { why: error.to_string(), full: matches!(error, NbdError::NoSpace) }
    }
}

impl From<String> for Failure {
    fn from(why: String) -> Failure {
        Failure { why, full: false }
    }
}

impl From<&str> for Failure {
    fn from(why: &str) -> Failure {
        why.to_owned().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_server_without_space_is_full() {
        let full = |of: Failure| matches!(of.into(), MirrorPhase::Failed { full: true, .. });
        assert!(full(NbdError::NoSpace.into()));
        assert!(!full(NbdError::Refused("error 5".to_owned()).into()));
        assert!(!full("no space".into()));
    }
}
