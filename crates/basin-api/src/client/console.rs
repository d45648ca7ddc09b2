//! A VM's serial console: a WebSocket over the same connection as everything else.

use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use reqwest::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use reqwest::{Method, Upgraded};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{Client, ClientError, Resource};
use crate::vm::Vm;

type Socket = WebSocketStream<Upgraded>;

/// A console that is open. Its halves work side by side.
#[derive(Debug)]
pub struct Console {
    pub input: ConsoleInput,
    pub output: ConsoleOutput,
}

/// What is typed.
#[derive(Debug)]
pub struct ConsoleInput {
    sink: SplitSink<Socket, Message>,
    endpoint: String,
}

/// What the guest writes; first what it wrote before.
#[derive(Debug)]
pub struct ConsoleOutput {
    stream: SplitStream<Socket>,
    endpoint: String,
}

impl Client {
    /// Opens a VM's serial console.
    pub async fn console(&self, vm: &str) -> Result<Console, ClientError> {
        let key = generate_key();
        let request = self
            .unlimited(Method::GET, &[Vm::PATH, vm, "console"])?
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, &key);
        let response = self.send(request).await?;
        let accept = response.headers().get(SEC_WEBSOCKET_ACCEPT);
        if accept.is_none_or(|a| a.as_bytes() != derive_accept_key(key.as_bytes()).as_bytes()) {
            return Err(self.protocol("it did not open a WebSocket for the console"));
        }
        let connection = response.upgrade().await.map_err(|e| self.lost(&e))?;
        let socket = WebSocketStream::from_raw_socket(connection, Role::Client, None).await;
        let (sink, stream) = socket.split();
        let endpoint = self.endpoint.clone();
        Ok(Console {
            input: ConsoleInput { sink, endpoint: endpoint.clone() },
            output: ConsoleOutput { stream, endpoint },
        })
    }
}

impl ConsoleInput {
    pub async fn send(&mut self, typed: Bytes) -> Result<(), ClientError> {
        self.sink.send(Message::Binary(typed)).await.map_err(|e| lost(&self.endpoint, &e))
    }

    /// Says good-bye; the guest does not notice.
    pub async fn close(mut self) {
        // The server sees the connection end in any case.
        let _ = self.sink.close().await;
    }
}

impl ConsoleOutput {
    /// The next piece; none when the server closed the console.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            match self.stream.next().await {
                Some(Ok(Message::Binary(bytes))) => return Ok(Some(bytes)),
                Some(Ok(Message::Text(text))) => return Ok(Some(text.into())),
                Some(Ok(Message::Close(_)) | Err(Error::ConnectionClosed)) | None => {
                    return Ok(None);
                }
                Some(Ok(_)) => {}
                Some(Err(e)) => return Err(lost(&self.endpoint, &e)),
            }
        }
    }
}

fn lost(endpoint: &str, error: &Error) -> ClientError {
    ClientError::Unreachable {
        endpoint: endpoint.to_owned(),
        reason: format!("the console's connection was lost ({error})"),
        advice: "the VM is not touched by this; open the console again".to_owned(),
    }
}
