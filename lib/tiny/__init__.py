"""The recipe of the encoder that ships: altered views, a teacher's answers about them, a student that learns to give the same."""
