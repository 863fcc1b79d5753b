"""Operations on runs: submission, display, explanation, mirroring, comparison."""
