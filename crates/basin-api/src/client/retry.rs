//! Patience with a server that is being restarted.

use std::time::Duration;

use tokio::time::Instant;

use super::ClientError;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Attempts in a row that failed.
#[derive(Debug)]
pub(super) struct Retry {
    patience: Duration,
    since: Option<Instant>,
    pause: Duration,
}

impl Retry {
    pub fn new(patience: Duration) -> Retry {
        Retry { patience, since: None, pause: FIRST_PAUSE }
    }

    pub fn succeeded(&mut self) {
        *self = Retry::new(self.patience);
    }

    /// Waits before the next attempt; gives the error back when it is not one that
    /// passes, or when patience is at its end.
    pub async fn failed(&mut self, error: ClientError) -> Result<(), ClientError> {
        let since = *self.since.get_or_insert_with(Instant::now);
        if !error.is_transient() || since.elapsed() >= self.patience {
            return Err(error);
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}
