//! Uploads: the request's body is the content. One that breaks off is refused by the
//! datastore, never taken for a short one.

use std::io;

use axum::Json;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use basin_model::{Bytes, DatastoreId};
use basin_storage::UploadId;
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_util::io::StreamReader;

use super::body::{Feed, feed};
use super::call::{failed, post, refuse};
use super::peer::Peer;
use super::router::Served;
use crate::NodeError;
use crate::problem::problem;

pub(super) const NAME: &str = "receive_upload";
const PIECE: usize = 64 << 10;

#[derive(Serialize, Deserialize)]
pub(super) struct Where {
    datastore: DatastoreId,
    upload: UploadId,
}

impl Peer {
    pub(super) async fn upload(
        &self,
        datastore: DatastoreId,
        upload: UploadId,
        bytes: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<Bytes, NodeError> {
        let (feed, body) = feed();
        let request = post(&format!("{NAME}?datastore={datastore}&upload={}", upload.0), body);
        let mut asked = std::pin::pin!(self.send_noting(request));
        let mut source = std::pin::pin!(pour(bytes, feed));
        let mut poured = false;
        let (response, noted) = loop {
            tokio::select! {
                // It may refuse before it has read everything.
                answered = &mut asked => break answered?,
                outcome = &mut source, if !poured => {
                    outcome?;
                    poured = true;
                }
            }
        };
        self.answer(NAME, response, &noted).await
    }
}

/// Reads to the end, or breaks the body off with the reason.
async fn pour(bytes: &mut (dyn AsyncRead + Send + Unpin), feed: Feed) -> Result<(), NodeError> {
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        match (&mut *bytes).take(PIECE as u64).read_to_end(&mut piece).await {
            Ok(0) => {
                feed.end().await;
                return Ok(());
            }
            Ok(_) => {
                if feed.send(piece.into()).await.is_err() {
                    // The answer says why nobody reads on.
                    return Ok(());
                }
            }
            Err(e) => {
                let detail = format!("the upload broke off: {e}");
                return Err(NodeError(problem("storage-io", detail, "upload it again")));
            }
        }
    }
}

pub(super) async fn handle(
    State(served): State<Served>,
    Query(to): Query<Where>,
    body: Body,
) -> Response {
    let mut reader = StreamReader::new(body.into_data_stream().map_err(io::Error::other));
    // To the end, so that what broke off is tidied away.
    let work = tokio::spawn(async move {
        let _turn = served.turns.wait(Some(to.upload.0)).await;
        served.node.receive_upload(to.datastore, to.upload, &mut reader).await
    });
    match work.await {
        Ok(Ok(size)) => Json(size).into_response(),
        Ok(Err(error)) => refuse(error),
        Err(panic) => refuse(failed(&panic)),
    }
}
