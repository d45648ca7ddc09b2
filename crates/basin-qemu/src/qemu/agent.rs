//! What the guest agent tells. Everything here comes from the guest and is not trusted:
//! bounded in length, count and time, and never an error.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use qapi::qga::{
    QgaCommand, guest_get_host_name, guest_get_osinfo, guest_network_get_interfaces, guest_sync,
};
use qapi::{Any, Execute, Never};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::codec::{FramedRead, LinesCodec};

use crate::engine::GuestInfo;

/// A busy guest takes its time; a caller does not have much.
const LIMIT: Duration = Duration::from_secs(3);
const MAX_LINE: usize = 256 << 10;
const MAX_ADDRESSES: usize = 64;
const MAX_TEXT: usize = 256;

/// Asks the agent behind `socket`. `None` when none answers in time.
pub async fn ask(socket: &Path, nonce: i32) -> Option<GuestInfo> {
    tokio::time::timeout(LIMIT, questions(socket, nonce)).await.ok()?
}

async fn questions(socket: &Path, nonce: i32) -> Option<GuestInfo> {
    let (read, write) = UnixStream::connect(socket).await.ok()?.into_split();
    let lines = FramedRead::new(read, LinesCodec::new_with_max_length(MAX_LINE));
    let mut agent = Agent { lines, write };
    agent.synchronize(nonce).await?;
    let host = agent.call(guest_get_host_name {}).await;
    let os = agent.call(guest_get_osinfo {}).await;
    let interfaces = agent.call(guest_network_get_interfaces {}).await.unwrap_or_default();
    let addresses = interfaces
        .into_iter()
        .flat_map(|interface| interface.ip_addresses.unwrap_or_default())
        .filter_map(|address| address.ip_address.parse::<IpAddr>().ok())
        .filter(|address| !address.is_loopback())
        .take(MAX_ADDRESSES)
        .collect();
    Some(GuestInfo {
        hostname: host.map(|host| printable(&host.host_name)),
        os: os.and_then(|os| os.pretty_name.or(os.name)).map(|name| printable(&name)),
        addresses,
    })
}

/// A text of the guest's that is fit for a terminal.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect()
}

struct Agent {
    lines: FramedRead<OwnedReadHalf, LinesCodec>,
    write: OwnedWriteHalf,
}

impl Agent {
    /// Skips what an earlier conversation left on the line.
    async fn synchronize(&mut self, nonce: i32) -> Option<()> {
        self.send(guest_sync { id: nonce.into() }).await?;
        while self.receive().await? != Some(Any::from(nonce)) {}
        Some(())
    }

    /// `None` also when this agent refuses the command.
    async fn call<C: QgaCommand>(&mut self, command: C) -> Option<C::Ok> {
        self.send(command).await?;
        serde_json::from_value(self.receive().await??).ok()
    }

    async fn send<C: QgaCommand>(&mut self, command: C) -> Option<()> {
        let mut line = serde_json::to_vec(&Execute::<C, Never>::with_command(command)).ok()?;
        line.push(b'\n');
        self.write.write_all(&line).await.ok()
    }

    /// The next answer; `Some(None)` for a refusal or nonsense.
    async fn receive(&mut self) -> Option<Option<Any>> {
        let line = self.lines.next().await?.ok()?;
        let mut answer: serde_json::Map<String, Any> = match serde_json::from_str(&line) {
            Ok(answer) => answer,
            Err(_) => return Some(None),
        };
        Some(answer.remove("return"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::net::UnixListener;

    /// An agent that answers with what `reply` makes of each command.
    async fn check(reply: fn(&str, i32) -> String, expect: Option<GuestInfo>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent");
        let listener = UnixListener::bind(&path).unwrap();
        let guest = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (read, mut write) = stream.into_split();
            let mut lines = BufReader::new(read).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let command: Any = serde_json::from_str(&line).unwrap();
                let text = reply(command["execute"].as_str().unwrap(), 7);
                if write.write_all(text.as_bytes()).await.is_err() {
                    break;
                }
            }
        });
        assert_eq!(questions(&path, 7).await, expect);
        guest.abort();
    }

    #[tokio::test]
    async fn an_agent_is_asked_and_not_believed() {
        check(
            |command, nonce| match command {
                "guest-sync" => format!("left over\n{{\"return\": {nonce}}}\n"),
                "guest-get-host-name" => "{\"return\":{\"host-name\":\"w\\u001beb\"}}\n".into(),
                "guest-get-osinfo" => {
                    "{\"error\":{\"class\":\"GenericError\",\"desc\":\"\"}}\n".into()
                }
                _ => "{\"return\":[{\"name\":\"eth0\",\"ip-addresses\":[\
                      {\"ip-address\":\"10.0.0.2\",\"ip-address-type\":\"ipv4\",\"prefix\":24},\
                      {\"ip-address\":\"nonsense\",\"ip-address-type\":\"ipv4\",\"prefix\":24},\
                      {\"ip-address\":\"::1\",\"ip-address-type\":\"ipv6\",\"prefix\":128}]}]}\n"
                    .into(),
            },
            Some(GuestInfo {
                hostname: Some("web".into()),
                os: None,
                addresses: vec!["10.0.0.2".parse().unwrap()],
            }),
        )
        .await;
    }

    #[tokio::test]
    async fn an_endless_line_is_no_answer() {
        check(|_, _| "x".repeat(MAX_LINE + 2), None).await;
    }
}
