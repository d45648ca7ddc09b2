//! `basin events`.

use basin_api::event::{Change, Event};
use clap::Args;

use super::error::CliError;
use super::session::Session;
use super::text::clean;
use super::view::word;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  basin events                         everything, from now on
  basin events --kind vm -o json       VMs only, one JSON object a line
  basin events --after 1234            first what changed since revision 1234")]
pub struct EventsArgs {
    /// Only changes of this kind: vm, volume, image, datastore, network, host, task or token
    /// (repeatable)
    #[arg(long, value_name = "KIND")]
    kind: Vec<String>,
    /// Begin with what changed after this revision, as far as it is remembered
    #[arg(long, value_name = "REVISION")]
    after: Option<u64>,
    /// Go on until Ctrl-C, which is what it does in any case
    #[arg(short, long, hide = true)]
    follow: bool,
}

impl EventsArgs {
    pub async fn run(self, session: &Session) -> Result<(), CliError> {
        let kinds: Vec<&str> = self.kind.iter().map(String::as_str).collect();
        let mut events = session.client.events(&kinds, self.after).await?;
        loop {
            let event = events.next().await?;
            session.out.stream(&event, line)?;
        }
    }
}

fn line(event: &Event) -> String {
    if event.change == Change::Resync {
        return format!("{}  history before this is no longer remembered", event.revision);
    }
    let field = |name: &str| event.object.as_ref().and_then(|o| o.get(name));
    let text = |value: Option<&serde_json::Value>| {
        value.and_then(|v| v.as_str()).map(clean).unwrap_or_default()
    };
    let name = match field("name") {
        Some(name) => text(Some(name)),
        None => clean(&event.id),
    };
    // A VM's state is in its status, others have it at the top.
    let state = field("status").and_then(|s| s.get("state")).or(field("state"));
    let line = format!(
        "{}  {} {}  {}  {}  {}",
        event.revision,
        clean(&event.kind),
        name,
        word(&event.change),
        text(state),
        text(field("message")),
    );
    line.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(event: serde_json::Value, expect: &str) {
        let event: Event = serde_json::from_value(event).expect("an event");
        assert_eq!(line(&event), expect);
    }

    #[test]
    fn lines() {
        check(
            json!({"change": "updated", "kind": "vm", "id": "v1", "revision": 7,
                   "object": {"name": "web", "status": {"state": "running"}}}),
            "7  vm web  updated  running",
        );
        check(
            json!({"change": "updated", "kind": "task", "id": "t1", "revision": 8,
                   "object": {"state": "running", "message": "copying"}}),
            "8  task t1  updated  running  copying",
        );
        check(
            json!({"change": "deleted", "kind": "vm", "id": "v1", "revision": 9}),
            "9  vm v1  deleted",
        );
        check(
            json!({"change": "resync", "kind": "", "id": "", "revision": 9}),
            "9  history before this is no longer remembered",
        );
    }
}
