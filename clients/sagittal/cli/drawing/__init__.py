"""Pictures of explanations. What is drawn depends on what an explanation holds, never on the method's name."""
