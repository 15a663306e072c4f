"""caption: a corpus goes in, one row for every clip comes out, and what is finished is never done twice."""
