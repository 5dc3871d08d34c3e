"""What several tests need: tiny models, pipelines, stores and servers, and independent references."""
