-- A journal of version 0.1, as a killed process left it: the dump of the file that the code of that
-- version wrote. Jobs 1 to 3 were done (3 smiles), job 4 (4 avatars) was running, and the creation of
-- job 5 (a smile) had no answer yet. The pictures were in /photos.
PRAGMA application_id = 1885757811;
PRAGMA user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT INTO "facts" VALUES('seq',26);
INSERT INTO "facts" VALUES('job',5);
INSERT INTO "facts" VALUES('wrote',1795982172866310);
INSERT INTO "facts" VALUES('clean',0);
CREATE TABLE tasks (
    identity BLOB NOT NULL, task_id TEXT NOT NULL, created INTEGER NOT NULL
);
INSERT INTO "tasks" VALUES(X'FC0B577A67C3EE8B8BF1B460196215571CE463344FC186564ED733917CAC8234','iQxuUrHhMvxVA2pxWQOI-2E6mhZUjn6UND2PUOO-DUtgH1suPEtAzNyKOFtNGBzJ5fN3d9nf9H5MEnOV0t_tq7fUMIyGBmeuSalhPZmMGrk',1795982166486967);
INSERT INTO "tasks" VALUES(X'FBC0EE4C59BD4F5019A1719B0F5B1D261ABAE0E8D2C0C98AC1338B497B62118E','HkoQnKN76ojF_q0AslI-jaHGAad-p2wjQ1i6XCD4VVBtq61i-uzvG3vpu3bsJ1TpBHEufsoUT2wWF_O2CNeFI1qhfwqDFApEpU0KdHFaf8k',1795982168530877);
INSERT INTO "tasks" VALUES(X'14CBDA5E61BCF7EE7FCB7D958FD3AA182DA7611D7A26A77C11DD977A6A757B90','gBJPfVoH7pVCLQLW05Pp-JfeEEW1U9kGOqJtQIKzIiNXwRK7_Vw61GjjOMysDIYhRlSFysLnkDA795Bu1g8458UkPoazKjqBop2ywoWyFW8',1795982168651916);
INSERT INTO "tasks" VALUES(X'','-lzOswAaobxcou6Q1VmPXeMJn0e_Szwec-JzsKuQJ3RgdB1bUUuMJnPYkNXNfFYOZ3c3ZxUiaGV9dQ9TikOJgM_VyUNhlWzTpgGikOkHVWA',1795982170980555);
CREATE TABLE window (second INTEGER PRIMARY KEY, requests INTEGER NOT NULL);
INSERT INTO "window" VALUES(1795982166,2);
INSERT INTO "window" VALUES(1795982167,1);
INSERT INTO "window" VALUES(1795982168,4);
INSERT INTO "window" VALUES(1795982169,2);
INSERT INTO "window" VALUES(1795982170,2);
INSERT INTO "window" VALUES(1795982171,2);
INSERT INTO "window" VALUES(1795982172,3);
CREATE TABLE words (
    seq INTEGER PRIMARY KEY, job INTEGER NOT NULL, at INTEGER NOT NULL,
    kind TEXT NOT NULL, text TEXT NOT NULL
);
INSERT INTO "words" VALUES(20,4,1795982170720258,'Entered','{"order":{"identity":"cb460d68b7cf8138c69a2530587bca73b8846cf4b691ebd307822ebdf49e535e","sure":true,"stem":"2","feature":"ai-avatar","units":1.0,"outputs":4,"parameters":[["template_id","male_studio_00"],["output_count",4]],"key":null,"kind":"path","place":"/photos/2.png","digest":"bc17e6ba71bda28cde03dc828f94f72a4825515b572601af607adc34e67ec12b","save_to":null,"delete":false}}');
INSERT INTO "words" VALUES(21,4,1795982170979842,'Uploaded','{"file_id":"+/+/ZUX/uMjI0mpRSRZJg6vbi4e/2ZBwERbGhDBplNEJKmw7rbLgfMA2fyz/588lng=="}');
INSERT INTO "words" VALUES(22,4,1795982170980555,'Creating','{}');
INSERT INTO "words" VALUES(23,4,1795982171028264,'Created','{"task_id":"-lzOswAaobxcou6Q1VmPXeMJn0e_Szwec-JzsKuQJ3RgdB1bUUuMJnPYkNXNfFYOZ3c3ZxUiaGV9dQ9TikOJgM_VyUNhlWzTpgGikOkHVWA"}');
INSERT INTO "words" VALUES(24,5,1795982172721663,'Entered','{"order":{"identity":"427fb7f62d567c47ad32b161d8ef298c8486bdd770ec741d99fafca614cba65b","sure":true,"stem":"3","feature":"ai-smile","units":1.0,"outputs":1,"parameters":[["expression","smile_with_teeth_visible"]],"key":null,"kind":"path","place":"/photos/3.png","digest":"e263ef9d638caf74487f76e2cfcc6d9fdfb3b16cc9eab66b973bdef5e2fa4182","save_to":null,"delete":false}}');
INSERT INTO "words" VALUES(25,5,1795982172842271,'Uploaded','{"file_id":"+/+/mtd2mi23rhKCLBknis7qM/hkHOA19EjWr2NNn7WIQfmLK8qRI045aDVcsWbl9Q=="}');
INSERT INTO "words" VALUES(26,5,1795982172842927,'Creating','{}');
CREATE INDEX words_of_job ON words (job);
CREATE INDEX tasks_as ON tasks (identity, created);
CREATE INDEX tasks_at ON tasks (created);
COMMIT;
