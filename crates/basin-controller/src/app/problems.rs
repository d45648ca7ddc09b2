//! Pure. Every refusal of the application, in one place: a stable code, what was
//! refused and why, and what to do. [`status`] maps codes to HTTP.

use std::fmt::Display;
use std::time::Duration;

use basin_model::task::{Problem, Task};

fn problem(code: &str, detail: impl Into<String>, advice: impl Into<String>) -> Problem {
    Problem { code: code.to_owned(), detail: detail.into(), advice: advice.into() }
}

/// HTTP status and title of a problem's code. A code that is not listed is the
/// server's fault: a test holds every constructor here to the list.
pub fn status(code: &str) -> (u16, &'static str) {
    match code {
        "malformed" => (400, "The request cannot be read"),
        "unauthenticated" => (401, "Who are you?"),
        "forbidden" => (403, "Not allowed"),
        "not-found" => (404, "There is no such thing"),
        "name-taken" => (409, "The name is taken"),
        "mac-taken" => (409, "The MAC address is taken"),
        "address-taken" => (409, "The address is taken"),
        "network-full" => (409, "The network has no free address"),
        "in-use" => (409, "It is in use"),
        "wrong-state" => (409, "Not in this state"),
        "busy" => (409, "Something else is changing it"),
        "no-host" => (409, "No server can take it"),
        "cannot-move" => (409, "It cannot move"),
        "migration-failed" => (409, "It has not moved"),
        "waiting" => (409, "Another server is waited for"),
        "subnet-overlap" => (409, "The subnet is in use"),
        "too-large" => (413, "The request is too large"),
        "changed" => (412, "It has changed meanwhile"),
        "invalid" => (422, "The request cannot be fulfilled"),
        "cancelled" => (409, "Cancelled"),
        // What servers say (basin-node's problem.rs).
        "storage-not-found" | "disk-not-found" => (404, "There is no such thing"),
        "content-corrupt" | "checksum-wrong" | "storage-invalid" => {
            (422, "The request cannot be fulfilled")
        }
        "fetch-failed" => (502, "It cannot be fetched"),
        "datastore-unreachable" => (409, "No server can take it"),
        "datastore-not-shared" => (409, "Not the same storage"),
        "disk-locked" | "disk-fenced" | "machine-gone" | "vm-not-running" => {
            (409, "Not in this state")
        }
        "migration-unknown" | "migration-over" => (409, "It has not moved"),
        "datastore-full" => (507, "Not enough space"),
        "datastore-not-mounted" | "datastore-not-open" | "datastore-unproven" => {
            (503, "The server is not ready for this")
        }
        "program-missing" | "qemu-unusable" | "network-not-ready" | "blockd-unreachable" => {
            (503, "The server is not ready for this")
        }
        "no-space" => (507, "Not enough space"),
        "join-refused" => (409, "The server is not let in"),
        "file-elsewhere" => (409, "The file is on another server"),
        "no-cluster" | "etcd-in-use" | "cluster-unfinished" => (409, "Not in this state"),
        "no-leader" => (503, "No server leads the cluster"),
        "store-unavailable" => (503, "The state store is not available"),
        "host-unreachable" | "host-untrusted" | "host-garbled" | "host-too-old"
        | "host-starting" => (503, "Another server cannot be asked"),
        "host-no-address" => (409, "Not in this state"),
        "host-removed" => (403, "Not allowed"),
        "forward-loop" => (503, "The servers do not agree on who is to do it"),
        "shutting-down" => (503, "The server is shutting down"),
        "timeout" => (504, "It took too long"),
        _ => (500, "Something went wrong"),
    }
}

pub fn malformed(why: impl Display) -> Problem {
    problem(
        "malformed",
        format!("The request cannot be read: {why}"),
        "See /v1/openapi.json for what is expected.",
    )
}

pub fn too_large(limit: usize) -> Problem {
    problem(
        "too-large",
        format!("The request's body is larger than {limit} bytes."),
        "Send disks and images as uploads.",
    )
}

pub fn unauthenticated() -> Problem {
    problem(
        "unauthenticated",
        "The request carries no valid token.",
        "Send 'Authorization: Bearer SECRET'; 'basin token create NAME' on the server makes one.",
    )
}

pub fn forbidden(what: &str) -> Problem {
    problem("forbidden", format!("You may not {what}."), "Ask an administrator for the right.")
}

pub fn not_found(kind: &str, reference: &str) -> Problem {
    problem(
        "not-found",
        format!("There is no {kind} '{reference}'."),
        format!("'basin {kind} list' shows those there are."),
    )
}

pub fn name_taken(kind: &str, name: impl Display) -> Problem {
    problem(
        "name-taken",
        format!("The {kind} name '{name}' is taken."),
        "Choose another name, or rename the other one.",
    )
}

pub fn mac_taken(mac: impl Display) -> Problem {
    problem(
        "mac-taken",
        format!("MAC address {mac} belongs to another interface."),
        "Leave it out to have one made.",
    )
}

pub fn address_taken(address: impl Display, network: impl Display) -> Problem {
    problem(
        "address-taken",
        format!("Address {address} of network '{network}' belongs to another interface."),
        "Leave it out to get the first free one.",
    )
}

pub fn network_full(network: impl Display) -> Problem {
    problem(
        "network-full",
        format!("Network '{network}' has no free address."),
        "Delete VMs that are no longer needed, or use a network with a larger subnet.",
    )
}

pub fn in_use(kind: &str, name: impl Display, by: &[String]) -> Problem {
    let shown = by.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
    let more = by.len().saturating_sub(5);
    let by = if more > 0 { format!("{shown} and {more} more") } else { shown };
    problem(
        "in-use",
        format!("The {kind} '{name}' is in use by {by}."),
        "Delete or detach those first.",
    )
}

pub fn wrong_state(
    kind: &str,
    name: impl Display,
    is: impl Display,
    advice: impl Into<String>,
) -> Problem {
    problem("wrong-state", format!("The {kind} '{name}' is {is}."), advice)
}

pub fn busy(kind: &str, name: impl Display) -> Problem {
    problem(
        "busy",
        format!("The {kind} '{name}' is being changed by somebody else at this moment."),
        "Try again.",
    )
}

pub fn changed(kind: &str, name: impl Display, now: u64) -> Problem {
    problem(
        "changed",
        format!("The {kind} '{name}' is no longer what you read; it is at revision {now}."),
        "Read it again, then repeat the change with the new ETag.",
    )
}

pub fn invalid(detail: impl Display) -> Problem {
    problem("invalid", detail.to_string(), "Correct the request and send it again.")
}

pub fn no_host(name: impl Display, reasons: &[String]) -> Problem {
    problem(
        "no-host",
        format!("No server can run VM '{name}': {}.", reasons.join("; ")),
        "Stop or shrink other VMs, or shrink this one; 'basin doctor' examines a server.",
    )
}

pub fn no_server_reaches(reasons: &[String]) -> Problem {
    problem(
        "datastore-unreachable",
        format!("No server reaches what is needed. {}.", reasons.join("; ")),
        "'basin datastore show' tells which servers reach a datastore, and why others do not.",
    )
}

pub fn no_space(
    datastore: impl Display,
    needed: impl Display,
    left: impl Display,
    overcommit: u32,
) -> Problem {
    problem(
        "no-space",
        format!(
            "Datastore '{datastore}' has promised too much already: {needed} asked for, {left} left to promise (overcommit {overcommit} %)."
        ),
        "Delete volumes, use another datastore, or raise its overcommit if you watch its free space.",
    )
}

pub fn store_unavailable(why: impl Display) -> Problem {
    problem(
        "store-unavailable",
        format!("The change cannot be kept: {why}"),
        "VMs go on running. In a cluster, see that most of the servers that keep the state are up \
         and reach each other ('basin cluster show'); on a server by itself, that the state \
         directory's file system has space and is writable.",
    )
}

pub fn join_refused(why: impl Display, advice: &str) -> Problem {
    problem("join-refused", format!("The server is not let in: {why}."), advice)
}

/// `path` is on the server that was asked; `reaches` has the datastore.
pub fn file_elsewhere(path: impl Display, asked: &str, reaches: &str, datastore: &str) -> Problem {
    problem(
        "file-elsewhere",
        format!(
            "{path} is a file of server '{asked}', which does not reach datastore '{datastore}': \
             server '{reaches}' does."
        ),
        "Upload the file, as 'basin image import' then does; or name a datastore that the \
         server reaches: --datastore.",
    )
}

pub fn no_cluster() -> Problem {
    problem(
        "no-cluster",
        "This server belongs to no cluster.",
        "Form one with 'basin init', or join one with 'basin join URL --token TOKEN'.",
    )
}

pub fn no_leader() -> Problem {
    problem(
        "no-leader",
        "No server leads the cluster at this moment, so nothing can be changed.",
        "VMs go on running. A leader is elected within seconds while most of the servers that \
         keep the state can reach each other: 'basin host list' shows which do.",
    )
}

pub fn silent(server: &str, within: Duration) -> Problem {
    problem(
        "host-unreachable",
        format!("Server '{server}' does not answer within {} seconds.", within.as_secs()),
        "Look at its load, and at its daemon there (systemctl status basin).",
    )
}

pub fn no_address(server: &str) -> Problem {
    problem(
        "host-no-address",
        format!("It is not known where server '{server}' can be reached."),
        "Its daemon notes its address when it joins; start it there, or join it again.",
    )
}

pub fn forward_loop(by: impl Display) -> Problem {
    problem(
        "forward-loop",
        format!("Server {by} sent this here, but it is not for this server to do either."),
        "The servers are about to choose who leads; try again in a few seconds.",
    )
}

pub fn only_servers(header: &str) -> Problem {
    problem(
        "forbidden",
        format!("Only the cluster's servers may set the header '{header}'."),
        "Leave it out: who you are is seen by your token.",
    )
}

/// A thing that a task has for itself.
pub fn held(kind: &str, name: impl Display, task: &Task) -> Problem {
    let does = match task.kind.as_str() {
        "vm-migrate" => "moves it to another server",
        "vm-delete" => "deletes it",
        _ => "works on it",
    };
    problem(
        "busy",
        format!("Task {} ({}) {does}: {kind} '{name}' is its own for now.", task.id, task.kind),
        format!(
            "Wait for it: 'basin task wait {0}'; or cancel it: 'basin task cancel {0}'.",
            task.id
        ),
    )
}

pub fn cannot_move(vm: impl Display, why: impl Display, advice: impl Into<String>) -> Problem {
    problem("cannot-move", format!("VM '{vm}' cannot move {why}."), advice)
}

/// `stayed`: the guest is known to run where it was.
pub fn migration_failed(
    vm: impl Display,
    from: &str,
    to: &str,
    why: impl Display,
    stayed: bool,
) -> Problem {
    let goes_on = match stayed {
        true => format!("It runs on, on {from}."),
        false => format!("It goes on on {from} as far as it can; {to} has nothing of it."),
    };
    problem(
        "migration-failed",
        format!("VM '{vm}' has not moved from {from} to {to}: {why}. {goes_on}"),
        "Move it again once that is mended.",
    )
}

/// What was free when the move began has been taken since.
pub fn moved_to_full(
    vm: impl Display,
    from: &str,
    to: &str,
    disks: &[String],
    stores: &[String],
) -> Problem {
    let quoted = |names: &[String]| {
        names.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ")
    };
    let (disks, stores) = (quoted(disks), quoted(stores));
    problem(
        "migration-failed",
        format!(
            "VM '{vm}' has not moved from {from} to {to}: datastore {stores} on {to} is full, and \
             there is no space left for its disk {disks}. It runs on, on {from}."
        ),
        format!("Make space on datastore {stores}, or name another one; then move it again."),
    )
}

pub fn waiting(detail: impl Into<String>) -> Problem {
    problem("waiting", detail, "Nothing is to be done; see whether both servers are up.")
}

/// What cannot be, and would be a defect.
pub fn broken(what: &str) -> Problem {
    problem(
        "internal-error",
        format!("Something that cannot be has happened: {what}."),
        "This is an error in Basin: report it with the daemon's log.",
    )
}

pub fn cancelled() -> Problem {
    problem("cancelled", "It was cancelled.", "What had been done is taken back.")
}

pub fn timeout(what: impl Display) -> Problem {
    problem(
        "timeout",
        format!("{what} took too long."),
        "See the task and the VM's status for how it goes on.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_has_a_status_of_its_own() {
        let all = [
            malformed("x"),
            too_large(1),
            unauthenticated(),
            forbidden("x"),
            not_found("vm", "x"),
            name_taken("vm", "x"),
            mac_taken("x"),
            address_taken("x", "n"),
            network_full("n"),
            in_use("image", "x", &["vm a".into()]),
            wrong_state("vm", "x", "running", "Stop it."),
            busy("vm", "x"),
            changed("vm", "x", 1),
            invalid("x"),
            no_host("x", &[]),
            no_space("d", 1, 2, 200),
            store_unavailable("x"),
            no_leader(),
            join_refused("x", "y"),
            no_cluster(),
            file_elsewhere("f", "a", "b", "d"),
            timeout("x"),
            cancelled(),
            silent("s", Duration::from_secs(1)),
            no_address("s"),
            forward_loop("s"),
            only_servers("x"),
            moved_to_full("v", "a", "b", &["d".into()], &["s".into()]),
        ];
        for problem in all {
            assert_ne!(status(&problem.code).0, 500, "{}", problem.code);
            assert!(!problem.detail.is_empty() && !problem.advice.is_empty(), "{problem:?}");
        }
    }
}
