//! An image's file for another server: what it is in the answer's headers, its bytes
//! from the offset on in the answer's body. A body that breaks off is an error of the
//! reader's, never the file's end.

use std::io;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, header};
use axum::response::{IntoResponse, Response};
use basin_model::{Bytes, DatastoreId, ImageId};
use basin_storage::ImageBytes;
use futures::TryStreamExt;
use http_body_util::BodyExt;
use serde::{Deserialize, Serialize};
use tokio_util::io::{ReaderStream, StreamReader};

use super::call::{post, refuse};
use super::peer::Peer;
use super::router::Served;
use super::trouble::garbled;
use crate::NodeError;

pub(super) const NAME: &str = "read_image";
const SIZE: HeaderName = HeaderName::from_static("basin-image-size");
const SHA256: HeaderName = HeaderName::from_static("basin-image-sha256");
const PIECE: usize = 256 << 10;

#[derive(Serialize, Deserialize)]
pub(super) struct From {
    datastore: DatastoreId,
    image: ImageId,
    offset: Bytes,
}

impl Peer {
    pub(super) async fn read_image(
        &self,
        datastore: DatastoreId,
        image: ImageId,
        offset: Bytes,
    ) -> Result<ImageBytes, NodeError> {
        let path = format!("{NAME}?datastore={datastore}&image={image}&offset={}", offset.get());
        let (response, noted) = self.send_noting(post(&path, super::full(Vec::new()))).await?;
        let response = self.accepted(NAME, response, &noted).await?;
        let headers = response.headers();
        let size = text(headers, SIZE).and_then(|size| size.parse().ok()).map(Bytes);
        let (Some(size), Some(sha256)) = (size, text(headers, SHA256)) else {
            return Err(garbled(self.server(), "it does not say which file it is"));
        };
        let sha256 = sha256.to_owned();
        let bytes = response.into_body().into_data_stream().map_err(io::Error::other);
        Ok(ImageBytes { size, sha256, bytes: Box::pin(StreamReader::new(bytes)) })
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

pub(super) async fn handle(State(served): State<Served>, Query(from): Query<From>) -> Response {
    match served.node.read_image(from.datastore, from.image, from.offset).await {
        Ok(image) => {
            let about = [
                (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
                (SIZE, image.size.get().to_string()),
                (SHA256, image.sha256),
            ];
            let bytes = ReaderStream::with_capacity(image.bytes, PIECE);
            (about, Body::from_stream(bytes)).into_response()
        }
        Err(error) => refuse(error),
    }
}
