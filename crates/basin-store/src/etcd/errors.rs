//! Pure. What an error of etcd means for the request that met it.

use std::error::Error;

use tonic::{Code, ConnectError, Status};

use crate::store::StoreError;

/// What became of a request that failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Answered: asking again will not help.
    Final(StoreError),
    /// Answered: the lease does not exist.
    LeaseGone,
    /// Answered: a lease with this id exists.
    LeaseExists,
    /// Answered: the history at this revision is gone.
    Compacted,
    /// Certainly not done. Another member, or the same one later, may do it.
    NotDone(String),
    /// Perhaps done.
    Unknown(String),
}

impl Failure {
    pub fn why(&self) -> String {
        match self {
            Failure::Final(e) => e.to_string(),
            Failure::LeaseGone => "the lease has ended".to_owned(),
            Failure::LeaseExists => "the lease exists".to_owned(),
            Failure::Compacted => "the history is gone".to_owned(),
            Failure::NotDone(why) | Failure::Unknown(why) => why.clone(),
        }
    }
}

/// Members answer these before they propose anything to the others.
const NEVER_PROPOSED: [&str; 6] = [
    "etcdserver: no leader",
    "etcdserver: not leader",
    "etcdserver: rpc not supported for learner",
    "etcdserver: too many requests",
    "etcdserver: not capable",
    "raft proposal dropped",
];

pub(crate) fn failure(status: &Status) -> Failure {
    let said = status.message();
    let has = |part: &str| said.contains(part);
    if never_sent(status) {
        return Failure::NotDone(chain(status));
    }
    if NEVER_PROPOSED.iter().any(|part| has(part)) {
        return Failure::NotDone(said.to_owned());
    }
    if has("requested lease not found") {
        return Failure::LeaseGone;
    }
    if has("lease already exists") {
        return Failure::LeaseExists;
    }
    if has("required revision has been compacted") {
        return Failure::Compacted;
    }
    if has("database space exceeded") {
        return Failure::Final(StoreError::Unavailable(
            "etcd's database has reached its quota and takes no changes: compact and defragment \
             it, or raise the quota, then clear the alarm"
                .to_owned(),
        ));
    }
    match status.code() {
        Code::InvalidArgument => Failure::Final(StoreError::Invalid(said.to_owned())),
        Code::Unauthenticated | Code::PermissionDenied => Failure::Final(StoreError::Unusable(
            format!("etcd refuses this server ({said}): check its certificate"),
        )),
        Code::DataLoss => Failure::Final(StoreError::Unusable(format!(
            "etcd says that its data are damaged ({said}): restore a backup"
        ))),
        _ => Failure::Unknown(chain(status)),
    }
}

/// Whether the request cannot have left this process.
fn never_sent(status: &Status) -> bool {
    let mut source = Error::source(status);
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// The error with all its causes: the last one is the one that helps.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = match error.downcast_ref::<Status>() {
        Some(status) => status.message().to_owned(),
        None => error.to_string(),
    };
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&more);
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(code: Code, message: &str, expect: &str) {
        let got = format!("{:?}", failure(&Status::new(code, message)));
        assert!(got.starts_with(expect), "{code:?} {message}: {got} is not {expect}");
    }

    #[test]
    fn errors_say_whether_it_may_have_been_done() {
        check(Code::Unavailable, "etcdserver: no leader", "NotDone");
        check(Code::FailedPrecondition, "etcdserver: not leader", "NotDone");
        check(Code::Unavailable, "etcdserver: rpc not supported for learner", "NotDone");
        check(Code::Unknown, "raft proposal dropped", "NotDone");
        check(Code::ResourceExhausted, "etcdserver: too many requests", "NotDone");
        check(Code::Unavailable, "etcdserver: request timed out", "Unknown");
        let lost = "etcdserver: request timed out, possibly due to previous leader failure";
        check(Code::Unavailable, lost, "Unknown");
        check(Code::Unavailable, "etcdserver: leader changed", "Unknown");
        check(Code::Unavailable, "etcdserver: server stopped", "Unknown");
        check(Code::Unknown, "transport error", "Unknown");
        check(Code::DeadlineExceeded, "", "Unknown");
        check(Code::NotFound, "etcdserver: requested lease not found", "LeaseGone");
        check(Code::FailedPrecondition, "etcdserver: lease already exists", "LeaseExists");
        let compacted = "etcdserver: mvcc: required revision has been compacted";
        check(Code::OutOfRange, compacted, "Compacted");
        let full = "etcdserver: mvcc: database space exceeded";
        check(Code::ResourceExhausted, full, "Final(Unavailable");
        check(Code::InvalidArgument, "etcdserver: request is too large", "Final(Invalid");
        check(Code::PermissionDenied, "etcdserver: permission denied", "Final(Unusable");
        check(Code::DataLoss, "etcdserver: corrupt cluster", "Final(Unusable");
    }
}
