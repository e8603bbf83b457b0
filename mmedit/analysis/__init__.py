"""The paper's study of neurons, repeatable on any model (sections 2.4 and 3, appendix B and C)."""
