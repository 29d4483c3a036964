//! Fetching an image from its registry.

use std::collections::BTreeMap;
use std::time::Duration;

use bollard::Docker as Engine;
use bollard::models::CreateImageInfo;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::StreamExt;
use tokio::time::Instant;

use super::failed;
use crate::runtime::RuntimeError;

/// Pulls `image`, telling about once a second how far it has come.
pub(super) async fn fetch(
    engine: &Engine,
    image: &str,
    progress: &(dyn Fn(String) + Send + Sync),
) -> Result<(), RuntimeError> {
    let options = CreateImageOptionsBuilder::default()
        .from_image(&with_tag(image))
        .build();
    let mut events = Box::pin(engine.create_image(Some(options), None, None));
    let (mut layers, mut told) = (Layers::default(), Instant::now());
    while let Some(event) = events.next().await {
        let event = event.map_err(|error| failed("fetch the image", image, &error))?;
        layers.take(event);
        if told.elapsed() >= PAUSE {
            told = Instant::now();
            progress(format!("{image}: {}", layers.sum()));
        }
    }
    progress(format!("{image}: fetched"));
    Ok(())
}

/// Adds the tag that is meant by none: the engine would fetch every tag there is.
fn with_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    match last.contains(':') || image.contains('@') {
        true => image.to_owned(),
        false => format!("{image}:latest"),
    }
}

/// How much of each layer has come: bytes here, bytes in all.
#[derive(Debug, Default)]
struct Layers(BTreeMap<String, (i64, i64)>);

impl Layers {
    fn take(&mut self, event: CreateImageInfo) {
        let is_download = event.status.as_deref() == Some("Downloading");
        let detail = event.progress_detail.filter(|_| is_download);
        if let (Some(layer), Some(detail)) = (event.id, detail)
            && let (Some(current), Some(total)) = (detail.current, detail.total)
        {
            self.0.insert(layer, (current, total));
        }
    }

    fn sum(&self) -> String {
        let (current, total) = self
            .0
            .values()
            .fold((0, 0), |sum, layer| (sum.0 + layer.0, sum.1 + layer.1));
        format!("{} of {} MB", current / MEGABYTE, total / MEGABYTE)
    }
}

const PAUSE: Duration = Duration::from_secs(1);
const MEGABYTE: i64 = 1_000_000;

#[cfg(test)]
mod tests {
    use bollard::models::ProgressDetail;

    use super::*;

    #[test]
    fn only_an_image_without_tag_or_digest_gets_one() {
        for (image, tagged) in [
            ("postgres", "postgres:latest"),
            ("postgres:15", "postgres:15"),
            ("registry:5000/postgres", "registry:5000/postgres:latest"),
            ("postgres@sha256:00", "postgres@sha256:00"),
        ] {
            assert_eq!(with_tag(image), tagged);
        }
    }

    #[test]
    fn layers_are_summed_up_by_their_last_report() {
        let mut layers = Layers::default();
        for (id, current) in [("a", 1), ("a", 30), ("b", 20)] {
            layers.take(CreateImageInfo {
                id: Some(id.to_owned()),
                status: Some("Downloading".to_owned()),
                progress_detail: Some(ProgressDetail {
                    current: Some(current * MEGABYTE),
                    total: Some(50 * MEGABYTE),
                }),
                ..Default::default()
            });
        }
        assert_eq!(layers.sum(), "50 of 100 MB");
    }
}
