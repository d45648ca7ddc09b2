//! Sending a file that is to become an image.

use std::path::Path;

use futures::StreamExt;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE};
use reqwest::{Body, Method};
use tokio::fs::File;
use tokio_util::io::ReaderStream;

use super::{Client, ClientError};
use crate::image::Upload;

/// Large enough that system calls do not count.
const CHUNK: usize = 256 << 10;

impl Client {
    /// Streams a file to the server, to the datastore that is named or to the default
    /// one. `on_progress` is told how much was read so far, and of how much.
    pub async fn upload(
        &self,
        file: &Path,
        datastore: Option<&str>,
        mut on_progress: impl FnMut(u64, u64) + Send + 'static,
    ) -> Result<Upload, ClientError> {
        let unreadable = |e: std::io::Error| {
            ClientError::local(format!("cannot read {}: {e}", file.display()), "")
        };
        let open = File::open(file).await.map_err(unreadable)?;
        let about = open.metadata().await.map_err(unreadable)?;
        if !about.is_file() {
            return Err(ClientError::local(
                format!("{} is not a regular file", file.display()),
                "give the image's file",
            ));
        }
        let total = about.len();
        let mut sent = 0;
        let chunks = ReaderStream::with_capacity(open, CHUNK).inspect(move |chunk| {
            if let Ok(chunk) = chunk {
                sent += chunk.len() as u64;
                on_progress(sent, total);
            }
        });
        let query: Vec<_> = datastore.map(|name| ("datastore", name)).into_iter().collect();
        let request = self
            .unlimited(Method::POST, &["uploads"])?
            .query(&query)
            .header(CONTENT_TYPE, "application/octet-stream")
            // Lets the server refuse at once what has no room.
            .header(CONTENT_LENGTH, total)
            .body(Body::wrap_stream(chunks));
        self.json(request).await
    }
}
