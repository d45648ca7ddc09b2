//! `/v1/images` and `/v1/uploads`

use axum::extract::{Path, Request, State};
use axum::{Extension, Json};
use basin_api::Problem;
use basin_api::image::{Image, ImageCreate, Upload};
use basin_api::reference::{List, MetaPatch};
use basin_api::task::Task;
use futures::TryStreamExt;
use serde::Deserialize;
use tokio_util::io::StreamReader;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Administer, Allow, Configure, View};
use super::convert::{self, labels};
use super::etag::{IfMatch, Tagged};
use super::extract::{Answer, Body, Pairs, Params};
use super::leader::Asked;
use super::tasks::{Accepted, accepted};
use super::{ApiError, Context};

pub fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, patch, delete))
        .routes(routes!(upload))
}

/// All images, or those with certain labels.
#[utoipa::path(get, path = "/v1/images", tag = "images",
    params(("label" = Option<Vec<String>>, Query, description = "`KEY=VALUE`; all have to match")),
    responses((status = 200, body = List<Image>), (status = "default", body = Problem)))]
async fn list(_: Allow<View>, State(context): State<Context>, query: Pairs) -> Answer<List<Image>> {
    let wanted = labels::selector(query.only(&["label"])?)?;
    let snapshot = context.app.inventory().read();
    let images = snapshot.images.values();
    let matching = images.filter(|i| labels::matches(&wanted, &i.value.meta.labels));
    let items = matching.map(|i| convert::image::image(i, &snapshot)).collect();
    Ok(Json(List { items, revision: snapshot.revision.0 }))
}

/// Imports an image from a URL, an upload, or a file on the server. The last is
/// read as root, and is therefore an administrator's to ask for.
#[utoipa::path(post, path = "/v1/images", tag = "images", request_body = ImageCreate,
    responses((status = 202, body = Task), (status = "default", body = Problem)))]
async fn create(
    _: Allow<Administer>,
    State(context): State<Context>,
    Extension(Asked(asked)): Extension<Asked>,
    Body(request): Body<ImageCreate>,
) -> Accepted {
    accepted(&context, context.app.import_image(&request, asked).await?)
}

/// One image.
#[utoipa::path(get, path = "/v1/images/{image}", tag = "images",
    params(("image" = String, Path, description = "name or id")),
    responses((status = 200, body = Image), (status = "default", body = Problem)))]
async fn show(
    _: Allow<View>,
    State(context): State<Context>,
    Path(reference): Path<String>,
) -> Result<Tagged<Image>, ApiError> {
    tagged(&context, &reference)
}

fn tagged(context: &Context, reference: &str) -> Result<Tagged<Image>, ApiError> {
    let snapshot = context.app.inventory().read();
    let record = snapshot.image(reference)?;
    Ok(Tagged(convert::image::image(record, &snapshot), record.revision.0))
}

/// Renames, describes or labels an image.
#[utoipa::path(patch, path = "/v1/images/{image}", tag = "images", request_body = MetaPatch,
    params(("image" = String, Path, description = "name or id"),
           ("If-Match" = Option<String>, Header, description = "the ETag that was read")),
    responses((status = 200, body = Image), (status = "default", body = Problem)))]
async fn patch(
    _: Allow<Configure>,
    State(context): State<Context>,
    Path(reference): Path<String>,
    IfMatch(expected): IfMatch,
    Body(patch): Body<MetaPatch>,
) -> Result<Tagged<Image>, ApiError> {
    let id = context.app.patch_image(&reference, &patch, expected).await?;
    tagged(&context, &id.to_string())
}

/// Deletes an image that nothing needs.
#[utoipa::path(delete, path = "/v1/images/{image}", tag = "images",
    params(("image" = String, Path, description = "name or id"),
           ("If-Match" = Option<String>, Header, description = "the ETag that was read")),
    responses((status = 202, body = Task), (status = "default", body = Problem)))]
async fn delete(
    _: Allow<Configure>,
    State(context): State<Context>,
    Path(reference): Path<String>,
    IfMatch(expected): IfMatch,
) -> Accepted {
    accepted(&context, context.app.delete_image(&reference, expected).await?)
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct UploadParams {
    /// Where the image is to be; `default` when absent.
    datastore: Option<String>,
}

/// Takes in a file that an image is to be made of; it is gone after a day.
#[utoipa::path(post, path = "/v1/uploads", tag = "images", params(UploadParams),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = Upload), (status = "default", body = Problem)))]
async fn upload(
    _: Allow<Configure>,
    State(context): State<Context>,
    Extension(Asked(asked)): Extension<Asked>,
    Params(params): Params<UploadParams>,
    request: Request,
) -> Answer<Upload> {
    let stream = request.into_body().into_data_stream().map_err(std::io::Error::other);
    let mut bytes = StreamReader::new(stream);
    let (id, size) = context.app.upload(params.datastore.as_deref(), asked, &mut bytes).await?;
    Ok(Json(Upload { id: id.0.to_string(), size_bytes: size.get() }))
}
