"""An OpenAI-compatible server for one run's checkpoints, and a chat page that collects votes."""
