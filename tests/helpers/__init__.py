"""What several tests need: tiny models, pipelines, stores, servers, independent references."""
