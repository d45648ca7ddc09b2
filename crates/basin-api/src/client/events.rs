//! Following every change, across restarts of the daemon.

use std::collections::VecDeque;
use std::time::Duration;

use futures::Stream;
use reqwest::{Method, Response};

use super::retry::Retry;
use super::sse::{Message, Parser};
use super::{Client, ClientError};
use crate::event::{Change, Event};
use crate::host::Host;

/// A stream that carries not even a heartbeat for this long is dead.
const SILENCE: Duration = Duration::from_secs(60);

/// The changes, in order. When the connection breaks it is made again, from where it
/// was, and nothing is missed.
#[derive(Debug)]
pub struct Events {
    client: Client,
    kinds: Vec<String>,
    /// What was asked for at first.
    after: u64,
    /// The revision of the last event, and what came with it. More may belong to it:
    /// one transaction can change several resources.
    last: Option<(u64, Vec<(String, String)>)>,
    /// What the new connection repeats, after the old one broke.
    repeated: Vec<(String, String)>,
    open: Option<(Response, Parser)>,
    ready: VecDeque<Event>,
    retry: Retry,
}

impl Client {
    /// Follows changes of `kinds` (all, when empty) that are later than revision
    /// `after`, or than now. Fails at once when the server cannot be reached.
    pub async fn events(&self, kinds: &[&str], after: Option<u64>) -> Result<Events, ClientError> {
        // From here on a lost connection misses nothing, not even before the first event.
        let after = match after {
            Some(revision) => revision,
            None => self.list::<Host>().await?.revision,
        };
        let mut events = Events {
            client: self.clone(),
            kinds: kinds.iter().map(|k| (*k).to_owned()).collect(),
            after,
            last: None,
            repeated: Vec::new(),
            open: None,
            ready: VecDeque::new(),
            retry: Retry::new(self.patience),
        };
        events.open = Some(events.connect().await?);
        Ok(events)
    }
}

impl Events {
    /// The next change. Fails when the server stays away; calling again tries again.
    pub async fn next(&mut self) -> Result<Event, ClientError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            if let Err(error) = self.read().await {
                self.open = None;
                if let Err(error) = self.retry.failed(error).await {
                    self.retry.succeeded();
                    return Err(error);
                }
            }
        }
    }

    /// As a stream, which ends after an error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Event, ClientError>> {
        futures::stream::unfold(Some(self), |events| async {
            let mut events = events?;
            match events.next().await {
                Ok(event) => Some((Ok(event), Some(events))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    async fn read(&mut self) -> Result<(), ClientError> {
        let (response, parser) = match &mut self.open {
            Some(open) => open,
            None => {
                let open = self.connect().await?;
                self.repeated = self.last.iter().flat_map(|(_, with)| with.clone()).collect();
                self.open.insert(open)
            }
        };
        let chunk = tokio::time::timeout(SILENCE, response.chunk())
            .await
            .map_err(|_| broken(&self.client, "it fell silent"))?
            .map_err(|e| self.client.lost(&e))?
            .ok_or_else(|| broken(&self.client, "it closed the stream of events"))?;
        for message in parser.feed(&chunk) {
            let event = decode(&message)
                .map_err(|e| self.client.protocol(format!("{e} in event '{}'", message.data)))?;
            self.take(event);
        }
        self.retry.succeeded();
        Ok(())
    }

    fn take(&mut self, event: Event) {
        let subject = (event.kind.clone(), event.id.clone());
        match &mut self.last {
            Some((revision, _))
                if *revision == event.revision && self.repeated.contains(&subject) =>
            {
                return;
            }
            Some((revision, with)) if *revision == event.revision => with.push(subject),
            last => {
                *last = Some((event.revision, vec![subject]));
                self.repeated.clear();
            }
        }
        self.ready.push_back(event);
    }

    async fn connect(&self) -> Result<(Response, Parser), ClientError> {
        let mut query: Vec<_> = self.kinds.iter().map(|k| ("kind", k.clone())).collect();
        query.push(("after", self.after.to_string()));
        let mut request = self
            .client
            .unlimited(Method::GET, &["events"])?
            .query(&query)
            .header("accept", "text/event-stream");
        if let Some((revision, _)) = self.last {
            // From before it, for the rest of what belongs to it.
            request = request.header("last-event-id", revision.saturating_sub(1));
        }
        // The stream has no limit in time, its beginning has.
        let response = tokio::time::timeout(SILENCE, self.client.send(request))
            .await
            .map_err(|_| broken(&self.client, "it did not answer in time"))??;
        Ok((response, Parser::default()))
    }
}

fn decode(message: &Message) -> Result<Event, serde_json::Error> {
    // The name alone says it all.
    if message.event == "resync" {
        let revision = message.id.as_deref().and_then(|id| id.parse().ok()).unwrap_or(0);
        return Ok(serde_json::from_str(&message.data).unwrap_or(Event {
            change: Change::Resync,
            kind: String::new(),
            id: String::new(),
            revision,
            object: None,
        }));
    }
    serde_json::from_str(&message.data)
}

fn broken(client: &Client, reason: &str) -> ClientError {
    ClientError::Unreachable {
        endpoint: client.endpoint().to_owned(),
        reason: reason.to_owned(),
        advice: "is `basin serve` running there?".to_owned(),
    }
}
