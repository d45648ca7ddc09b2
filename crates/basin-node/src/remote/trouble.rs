//! Pure. Why another server could not be asked, for those who wanted to ask it.

use std::error::Error as StdError;
use std::io;

use basin_model::task::Problem;

use crate::NodeError;
use crate::pki::{Spoken, spoken};
use crate::problem::problem;

/// What a connection broke on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Nobody there, or not any more. Reads on after "cannot be reached: ".
    Unreachable(String),
    /// One end does not trust the other.
    Untrusted(Spoken),
}

impl Failure {
    pub fn of_io(error: &io::Error) -> Failure {
        if let Some(tls) = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
            return match spoken(tls) {
                Ok(spoken) => Failure::Untrusted(spoken),
                Err(words) => Failure::Unreachable(words),
            };
        }
        let words = match error.kind() {
            io::ErrorKind::ConnectionRefused => {
                "nothing listens there (connection refused)".to_owned()
            }
            io::ErrorKind::TimedOut => "it does not answer".to_owned(),
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => "it closed the connection".to_owned(),
            _ => error.to_string(),
        };
        Failure::Unreachable(words)
    }

    pub fn of_hyper(error: &hyper::Error) -> Failure {
        if error.is_timeout() {
            return Failure::Unreachable("it stopped answering".to_owned());
        }
        let mut source = error.source();
        while let Some(error) = source {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                return Failure::of_io(error);
            }
            source = error.source();
        }
        if error.is_closed() || error.is_canceled() || error.is_incomplete_message() {
            return Failure::Unreachable("it closed the connection".to_owned());
        }
        let cause = error.source().map(|e| format!(": {e}")).unwrap_or_default();
        Failure::Unreachable(format!("{error}{cause}"))
    }
}

/// What is told of a server that cannot be asked. `server` names it with its address.
pub fn unreachable(server: &str, failure: &Failure) -> NodeError {
    NodeError(match failure {
        Failure::Unreachable(why) => Problem {
            code: "host-unreachable".to_owned(),
            detail: format!("{server} cannot be reached: {why}"),
            advice: "check that the server is up, that its daemon runs there (systemctl status \
                     basin), and that this server's network reaches that address and port"
                .to_owned(),
        },
        Failure::Untrusted(spoken) => Problem {
            code: "host-untrusted".to_owned(),
            detail: format!("{server} is not spoken with: {spoken}"),
            advice: spoken.advice().to_owned(),
        },
    })
}

/// It answered, but not in a way that this release understands.
pub fn garbled(server: &str, why: impl std::fmt::Display) -> NodeError {
    let detail = format!("{server} gave an answer that cannot be read: {why}");
    let advice = "servers may be one release apart: bring both to the same release of Basin";
    NodeError(problem("host-garbled", detail, advice))
}

/// It does not know the method.
pub fn too_old(server: &str, method: &str) -> NodeError {
    let detail = format!("{server} does not know how to do '{method}': its Basin is too old");
    NodeError(problem("host-too-old", detail, "upgrade Basin on that server"))
}
